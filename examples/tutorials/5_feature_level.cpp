// A feature-level model learns to find the objects of a few generated pictures.
#include <moecod/backbone/pvt_v2.hpp>
#include <moecod/data/generator.hpp>
#include <moecod/data/procedural.hpp>
#include <moecod/expert/contrast.hpp>
#include <moecod/expert/edge.hpp>
#include <moecod/expert/frequency.hpp>
#include <moecod/expert/texture.hpp>
#include <moecod/model/feature_level.hpp>
#include <moecod/moe/balance/ema_bias.hpp>
#include <moecod/moe/dispatch/batched.hpp>
#include <moecod/moe/experts/distinct.hpp>
#include <moecod/moe/router/global_pool.hpp>
#include <moecod/moe/select/top_k.hpp>
#include <moecod/train/image_iou.hpp>
#include <torch/torch.h>

#include <cstdio>

using namespace moecod;

using Six = Distinct<expert::Texture<>, expert::Frequency<>, expert::Edge<>, expert::Contrast<>, expert::Texture<>,
                     expert::Frequency<>>;
using Model = FeatureLevel<backbone::PvtV2B0,
                           Mixture<router::GlobalPool, Six, select::TopK<2>, balance::EmaBias, dispatch::Batched>>;

int main() {
  torch::manual_seed(0);
  // Eight pictures of easily seen objects, [8, 3, 64, 64], and their masks.
  const data::Generator generate(data::procedural_photographs(3, 0, 256), {.size = 64, .difficulty = 0.0});
  std::vector<at::Tensor> images, masks;
  for (uint64_t i = 0; i < 8; ++i) {
    data::Camouflage made = generate(i);
    images.push_back(torch::from_blob(made.image.pixels.data(), {64, 64, 3}, torch::kUInt8).permute({2, 0, 1}).clone());
    masks.push_back(torch::from_blob(made.mask.pixels.data(), {1, 64, 64}, torch::kUInt8).clone());
  }
  const at::Tensor x = torch::stack(images).to(torch::kFloat) / 127.5 - 1, m = torch::stack(masks).to(torch::kFloat) / 255;

  Model::Options options;
  options.head.width = 16;
  Model model(options);
  torch::optim::AdamW optimizer(model.parameters(), torch::optim::AdamWOptions(2e-3));
  double first_loss = 0, last_loss = 0, iou = 0;
  for (int step = 0; step <= 60; ++step) {
    const auto out = model.forward(x);
    const at::Tensor loss = model.head->loss(out.maps, m).mean();
    optimizer.zero_grad();
    loss.backward();
    balance::commit(model);                     // all four levels at once
    optimizer.step();
    if (step % 20 == 0) {
      last_loss = loss.item<double>();
      if (step == 0) first_loss = last_loss;
      iou = train::image_iou(out.maps.logits, m).mean().item<double>();
      std::printf("step %d: loss %.1f, mean IoU %.1f\n", step, last_loss, iou);
    }
  }
  std::printf("the loss fell to less than half: %s\n", last_loss < first_loss / 2 ? "yes" : "no");
  std::printf("the mean IoU is above three quarters: %s\n", iou > 0.75 ? "yes" : "no");
}
