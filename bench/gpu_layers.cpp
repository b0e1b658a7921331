// The backward passes of resized and pooled maps on a GPU: the kernels of moecod::cuda against their bytes and against
// LibTorch's backward, which adds with atomics.
//
//     bench_gpu_layers --benchmark_out=layers.json --benchmark_out_format=json
//     python bench/gpu_table.py layers.json
#include "bench/gpu.hpp"
#include "moecod/core/operators.hpp"

namespace moecod::bench {
namespace {

struct Shape {
  int64_t images, channels, side, out;
  std::string text() const {
    return "/B:" + std::to_string(images) + "/C:" + std::to_string(channels) + "/H:" + std::to_string(side) +
           "/to:" + std::to_string(out);
  }
};

enum class Layer { resize, average_pool, max_pool };

void backward(benchmark::State& state, Layer layer, const Shape& s, bool kernel) {
  torch::manual_seed(1);
  const auto options = at::TensorOptions().dtype(at::kBFloat16).device(at::kCUDA);
  const double maps = double(s.images * s.channels), index = layer == Layer::max_pool ? 8 : 0;
  const double bytes = maps * (double(s.out * s.out) * (2 + index) + double(s.side * s.side) * 2);
  std::vector<at::Tensor> maps_in, grads, indices;
  for (int i = 0; i < sets_for(bytes); ++i) {
    maps_in.push_back(at::randn({s.images, s.channels, s.side, s.side}, options));
    grads.push_back(at::randn({s.images, s.channels, s.out, s.out}, options));
    if (layer == Layer::max_pool) indices.push_back(std::get<1>(at::adaptive_max_pool2d(maps_in.back(), {s.out, s.out})));
  }
  const auto call = [&](int i) {
    const at::Tensor &x = maps_in[std::size_t(i)], &g = grads[std::size_t(i)];
    switch (layer) {
      case Layer::resize:
        kernel ? operators::find<operators::ResizeBackward>()->call(g, s.side, s.side, false)
               : at::upsample_bilinear2d_backward(g, {s.out, s.out}, x.sizes(), false);
        break;
      case Layer::average_pool:
        kernel ? operators::find<operators::AveragePoolBackward>()->call(g, s.side, s.side)
               : at::_adaptive_avg_pool2d_backward(g, x);
        break;
      case Layer::max_pool:
        kernel ? operators::find<operators::MaxPoolBackward>()->call(g, indices[std::size_t(i)], s.side, s.side)
               : at::adaptive_max_pool2d_backward(g, x, indices[std::size_t(i)]);
        break;
    }
  };
  time(state, bytes, /*graph=*/true, call, static_cast<int>(maps_in.size()));
}

void add_layers() {
  const auto rows = [](const std::string& name, Layer layer, const Shape& s) {
    add(name + s.text() + "/by:kernel", [=](benchmark::State& t) { backward(t, layer, s, true); });
    add(name + s.text() + "/by:libtorch", [=](benchmark::State& t) { backward(t, layer, s, false); });
  };
  // What the decoders do to their maps at 448 pixels.
  for (const auto& [channels, side, out] : {std::array<int64_t, 3>{64, 14, 28}, {64, 28, 56}, {64, 56, 112}, {128, 14, 56},
                                            {1, 14, 448}, {1, 56, 448}, {1, 112, 448}, {1, 448, 224}, {64, 28, 14}})
    rows("resize_backward", Layer::resize, {24, channels, side, out});
  for (const auto& [channels, side, out] : {std::array<int64_t, 3>{128, 56, 28}, {320, 28, 7}, {64, 56, 7}, {512, 14, 1}}) {
    rows("average_pool_backward", Layer::average_pool, {24, channels, side, out});
    rows("max_pool_backward", Layer::max_pool, {24, channels, side, out});
  }
}

}  // namespace
}  // namespace moecod::bench

int main(int argc, char** argv) {
  moecod::bench::add_layers();
  return moecod::bench::run(argc, argv);
}
