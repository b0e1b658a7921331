// Layers on a GPU in bfloat16, the kernels of moecod::cuda against their bytes and against LibTorch's: the backward passes of
// resized and pooled maps, where LibTorch's add with atomics, and depthwise convolutions, channels last.
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

struct DepthwiseBackward {
  static constexpr const char* name = "moecod::grouped_depthwise_conv2d_backward";
  using signature = std::tuple<at::Tensor, at::Tensor, at::Tensor>(const at::Tensor&, const at::Tensor&, const at::Tensor&,
                                                                   const at::Tensor&, at::IntArrayRef, at::IntArrayRef,
                                                                   std::array<bool, 3>);
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

/// Forward, or both gradients and the bias's.
void depthwise(benchmark::State& state, const Shape& s, bool both, bool kernel) {
  torch::manual_seed(1);
  constexpr auto channels_last = at::MemoryFormat::ChannelsLast;
  const auto options = at::TensorOptions().dtype(at::kBFloat16).device(at::kCUDA);
  const int64_t k = s.out;  // the filter's side
  const double map = 2.0 * double(s.images * s.channels * s.side * s.side), bytes = both ? 3 * map : 2 * map;
  const at::Tensor w = at::randn({1, s.channels, 1, k, k}, options), b = at::randn({1, s.channels}, options);
  const at::Tensor offsets = at::tensor({int64_t{0}, s.images}, at::kLong).to(options.dtype(at::kInt));
  const std::array<int64_t, 2> padding{k / 2, k / 2}, one{1, 1}, none{0, 0};
  std::vector<at::Tensor> maps, grads;
  for (int i = 0; i < sets_for(bytes); ++i) {
    maps.push_back(at::randn({s.images, s.channels, s.side, s.side}, options).contiguous(channels_last));
    grads.push_back(at::randn_like(maps.back()));
  }
  const auto call = [&](int i) {
    const at::Tensor &x = maps[std::size_t(i)], &g = grads[std::size_t(i)];
    if (both) {
      kernel ? void(operators::find<DepthwiseBackward>()->call(g, x, w, offsets, padding, one, {true, true, true}))
             : void(at::convolution_backward(g, x, w[0], at::OptionalIntArrayRef({s.channels}), one, padding, one, false,
                                             none, s.channels, {true, true, true}));
    } else {
      kernel ? operators::find<operators::GroupedDepthwiseConv2d>()->call(x, w, b, offsets, padding, one)
             : at::conv2d(x, w[0], b[0], one, padding, one, s.channels);
    }
  };
  time(state, bytes, /*graph=*/true, call, static_cast<int>(maps.size()));
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
  // The feed-forward layers of PVTv2-B2 at 448 pixels, and a 7 x 7 filter of ConvNeXt.
  for (const auto& [channels, side, k] : {std::array<int64_t, 3>{512, 112, 3}, {1024, 56, 3}, {1280, 28, 3}, {2048, 14, 3},
                                          {128, 56, 7}})
    for (const bool both : {false, true})
      for (const bool kernel : {true, false}) {
        const Shape s{12, channels, side, k};
        const std::string name = std::string(both ? "depthwise_backward" : "depthwise") + "/B:12/C:" +
                                 std::to_string(channels) + "/H:" + std::to_string(side) + "/k:" + std::to_string(k);
        add(name + (kernel ? "/by:kernel" : "/by:libtorch"), [=](benchmark::State& t) { depthwise(t, s, both, kernel); });
      }
}

}  // namespace
}  // namespace moecod::bench

int main(int argc, char** argv) {
  moecod::bench::add_layers();
  return moecod::bench::run(argc, argv);
}
