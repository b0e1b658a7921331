// A trained model in a program that works with OpenCV: a picture in, a map out, and who was asked.
//   tutorial_9 CHECKPOINT PICTURE MAP      without arguments: an untrained model and a made picture
#include <moecod/io/image.hpp>
#include <torch/torch.h>

#include <cstdio>
#include <opencv2/core.hpp>
#include <opencv2/imgcodecs.hpp>
#include <opencv2/imgproc.hpp>

#include "examples/camo_model.hpp"

using namespace moecod;

/// 8-bit BGR of any size -> [1, 3, side, side], as the programs normalise it.
at::Tensor to_input(const cv::Mat& bgr, int side) {
  cv::Mat rgb, small;
  cv::cvtColor(bgr, rgb, cv::COLOR_BGR2RGB);
  cv::resize(rgb, small, {side, side}, 0, 0, cv::INTER_AREA);
  const at::Tensor x = torch::from_blob(small.data, {1, side, side, 3}, torch::kUInt8).permute({0, 3, 1, 2});
  const at::Tensor mean = torch::tensor({0.485, 0.456, 0.406}).view({1, 3, 1, 1});
  const at::Tensor deviation = torch::tensor({0.229, 0.224, 0.225}).view({1, 3, 1, 1});
  return (x.to(torch::kFloat) / 255 - mean) / deviation;
}

int main(int argc, char** argv) {
  torch::NoGradGuard no_grad;
  torch::manual_seed(0);
  examples::CamoOptions small;                        // of the untrained model
  small.backbone = "pvt_v2_b0";
  small.sinet_width = small.pranet_width = small.zoomnet_width = small.ujsc_width = 16;
  small.router_width = 8;
  const auto model = argc > 1 ? examples::load_camo(argv[1]) : std::make_unique<examples::Camo>(camo_options(small));
  const int side = argc > 1 ? static_cast<int>(examples::recorded_size(argv[1])) : 96;
  model->eval();

  cv::Mat picture = argc > 2 ? cv::imread(argv[2]) : cv::Mat(120, 160, CV_8UC3, cv::Scalar(40, 120, 90));
  if (picture.empty()) {
    std::fprintf(stderr, "cannot read %s\n", argv[2]);
    return 1;
  }
  const auto out = (*model)(to_input(picture, side), WithRouting{});
  const at::Tensor probability = (torch::sigmoid(out.logits[0][0]) * 255).round().to(torch::kUInt8).contiguous();
  cv::Mat map(side, side, CV_8UC1, probability.data_ptr()), full;
  cv::resize(map, full, picture.size(), 0, 0, cv::INTER_LINEAR);
  std::printf("picture %d x %d, map %d x %d\n", picture.rows, picture.cols, full.rows, full.cols);
  std::printf("two experts asked, their weights sum to 1: %s\n",
              torch::allclose(out.top_k_weights.sum(1), torch::ones({1})) ? "yes" : "no");
  if (argc > 1)                                       // an untrained router's choice says nothing
    std::printf("asked: %s with %.2f, %s with %.2f\n",
                examples::expert_names[static_cast<std::size_t>(out.top_k_indices[0][0].item<int>())].c_str(),
                out.top_k_weights[0][0].item<double>(),
                examples::expert_names[static_cast<std::size_t>(out.top_k_indices[0][1].item<int>())].c_str(),
                out.top_k_weights[0][1].item<double>());
  if (argc > 3 && !cv::imwrite(argv[3], full)) return 1;
}
