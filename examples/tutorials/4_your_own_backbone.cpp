// A backbone of your own in a feature-level model: a plain stack of strided convolutions.
#include <moecod/backbone/backbone.hpp>
#include <moecod/expert/conv.hpp>
#include <moecod/layers/conv_norm.hpp>
#include <moecod/model/feature_level.hpp>
#include <moecod/moe/balance/ema_bias.hpp>
#include <moecod/moe/dispatch/batched.hpp>
#include <moecod/moe/experts/replicated.hpp>
#include <moecod/moe/router/global_pool.hpp>
#include <moecod/moe/select/top_k.hpp>
#include <torch/torch.h>

#include <cstdio>

using namespace moecod;

class Strided : public backbone::Backbone {
 public:
  struct Options {
    int64_t width = 16;
  };
  Strided() : Strided(Options()) {}
  explicit Strided(const Options& options) : width_(options.width) {
    int64_t in = 3;
    for (std::size_t i = 0; i < 4; ++i) {
      const int64_t out = width_ << i;
      const int64_t stride = i == 0 ? 4 : 2, kernel = i == 0 ? 7 : 3;
      stages_.push_back(register_module(
          "stage" + std::to_string(i),
          std::make_shared<layers::ConvNorm<>>(layers::Conv2dOptions{
              .in = in, .out = out, .kernel = {kernel, kernel}, .stride = {stride, stride}})));
      in = out;
    }
  }

  std::vector<int64_t> dims() const override { return {width_, 2 * width_, 4 * width_, 8 * width_}; }
  std::vector<int64_t> strides() const override { return {4, 8, 16, 32}; }

  Pyramid forward(const at::Tensor& images) override {
    check_images(images);                                      // says what is wrong with a size that does not fit
    Pyramid levels;
    at::Tensor x = images;
    for (const auto& stage : stages_) levels.push_back(x = stage->forward(x));
    return levels;
  }

 private:
  int64_t width_;
  std::vector<std::shared_ptr<layers::ConvNorm<>>> stages_;
};

using Model = FeatureLevel<Strided, Mixture<router::GlobalPool, Replicated<expert::Conv<>, 4>, select::TopK<2>,
                                            balance::EmaBias, dispatch::Batched>>;

int main() {
  torch::manual_seed(0);
  Model model;
  model.eval();
  torch::NoGradGuard no_grad;
  const auto out = model.forward(torch::randn({2, 3, 64, 96}));
  const at::Tensor& map = out.maps.logits;
  std::printf("logits %lld x %lld x %lld x %lld\n", static_cast<long long>(map.size(0)),
              static_cast<long long>(map.size(1)), static_cast<long long>(map.size(2)),
              static_cast<long long>(map.size(3)));
  for (std::size_t i = 0; i < out.routing.size(); ++i)
    std::printf("level %zu: %lld channels, %lld images, %lld experts for each\n", i + 1,
                static_cast<long long>(model.backbone->dims()[i]), static_cast<long long>(out.routing[i].rows()),
                static_cast<long long>(out.routing[i].experts.size(1)));   // which ones: out.routing[i].experts
  try {
    model.forward(torch::randn({2, 3, 64, 100}));
  } catch (const c10::Error& error) {
    std::printf("refused: %s\n", std::string(error.what_without_backtrace()).substr(0, 64).c_str());
  }
}
