// Layers on a GPU in bfloat16, the kernels of moecod::cuda against their bytes and against LibTorch's: resized maps, the
// backward passes of resized and pooled ones, where LibTorch's add with atomics, depthwise convolutions, channels last, alone
// and with GELU, and layer normalisation.
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

enum class Layer { resized, resize, average_pool, max_pool };  // resized: forward

void resample(benchmark::State& state, Layer layer, const Shape& s, bool kernel) {
  torch::manual_seed(1);
  constexpr auto channels_last = at::MemoryFormat::ChannelsLast;  // what the models have; one channel is either
  const auto options = at::TensorOptions().dtype(at::kBFloat16).device(at::kCUDA);
  const double maps = double(s.images * s.channels), index = layer == Layer::max_pool ? 8 : 0;
  const double bytes = maps * (double(s.out * s.out) * (2 + index) + double(s.side * s.side) * 2);
  std::vector<at::Tensor> maps_in, grads, indices;
  for (int i = 0; i < sets_for(bytes); ++i) {
    maps_in.push_back(at::empty({s.images, s.channels, s.side, s.side}, options, channels_last).normal_());
    grads.push_back(at::empty({s.images, s.channels, s.out, s.out}, options, channels_last).normal_());
    if (layer == Layer::max_pool) indices.push_back(std::get<1>(at::adaptive_max_pool2d(maps_in.back(), {s.out, s.out})));
  }
  const auto call = [&](int i) {
    const at::Tensor &x = maps_in[std::size_t(i)], &g = grads[std::size_t(i)];
    switch (layer) {
      case Layer::resized:
        kernel ? operators::find<operators::Resize>()->call(x, s.out, s.out, false)
               : at::upsample_bilinear2d(x, {s.out, s.out}, false);
        break;
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

/// The offsets of one expert that has all rows.
at::Tensor all_of(int64_t rows) {
  return at::tensor({int64_t{0}, rows}, at::kLong).to(at::TensorOptions().dtype(at::kInt).device(at::kCUDA));
}

/// Forward, or a step: forward, and the gradients of all that went in.
template <class F>
void forward_or_step(benchmark::State& state, bool step, double bytes, const std::vector<at::Tensor>& inputs,
                     const std::vector<at::Tensor>& parameters, F&& f) {
  std::vector<at::Tensor> seeds;
  for (const at::Tensor& x : inputs) seeds.push_back(at::randn_like(x));
  const auto call = [&](int i) {
    const at::Tensor& x = inputs[std::size_t(i)];
    if (!step) {
      const torch::NoGradGuard no_grad;
      f(x);
      return;
    }
    std::vector<at::Tensor> leaves{x};
    leaves.insert(leaves.end(), parameters.begin(), parameters.end());
    torch::autograd::grad({f(x)}, leaves, {seeds[std::size_t(i)]});
  };
  time(state, bytes, /*graph=*/true, call, static_cast<int>(inputs.size()));
}

void depthwise(benchmark::State& state, const Shape& s, bool gelu, bool step, bool kernel) {
  torch::manual_seed(1);
  constexpr auto channels_last = at::MemoryFormat::ChannelsLast;
  const auto options = at::TensorOptions().dtype(at::kBFloat16).device(at::kCUDA);
  const int64_t k = s.out;  // the filter's side
  const double map = 2.0 * double(s.images * s.channels * s.side * s.side), bytes = step ? 5 * map : 2 * map;
  const at::Tensor w = at::randn({1, s.channels, 1, k, k}, options).set_requires_grad(true);
  const at::Tensor b = at::randn({1, s.channels}, options).set_requires_grad(true), offsets = all_of(s.images);
  const std::array<int64_t, 2> padding{k / 2, k / 2}, one{1, 1};
  std::vector<at::Tensor> maps;
  for (int i = 0; i < sets_for(bytes); ++i)
    maps.push_back(
        at::empty({s.images, s.channels, s.side, s.side}, options, channels_last).normal_().set_requires_grad(true));
  forward_or_step(state, step, bytes, maps, {w, b}, [&](const at::Tensor& x) {
    if (kernel) return operators::find<operators::GroupedDepthwiseConv2d>()->call(x, w, b, offsets, padding, one, gelu);
    const at::Tensor y = at::conv2d(x, w[0], b[0], one, padding, one, s.channels);
    return gelu ? at::gelu(y) : y;
  });
}

void layer_norm(benchmark::State& state, int64_t rows, int64_t width, bool step, bool kernel) {
  torch::manual_seed(1);
  const auto options = at::TensorOptions().dtype(at::kBFloat16).device(at::kCUDA);
  const double map = 2.0 * double(rows * width), bytes = step ? 5 * map : 2 * map;
  const auto type = kernel ? at::kFloat : at::kBFloat16;  // LibTorch wants one type
  const at::Tensor w = at::randn({1, width}, options.dtype(type)).set_requires_grad(true);
  const at::Tensor b = at::randn({1, width}, options.dtype(type)).set_requires_grad(true), offsets = all_of(rows);
  std::vector<at::Tensor> inputs;
  for (int i = 0; i < sets_for(bytes); ++i) inputs.push_back(at::randn({rows, width}, options).set_requires_grad(true));
  forward_or_step(state, step, bytes, inputs, {w, b}, [&](const at::Tensor& x) {
    return kernel ? operators::find<operators::GroupedLayerNorm>()->call(x, w, b, offsets, 1e-6)
                  : at::layer_norm(x, {width}, w[0], b[0], 1e-6);
  });
}

void add_layers() {
  const auto rows = [](const std::string& name, Layer layer, const Shape& s) {
    add(name + s.text() + "/by:kernel", [=](benchmark::State& t) { resample(t, layer, s, true); });
    add(name + s.text() + "/by:libtorch", [=](benchmark::State& t) { resample(t, layer, s, false); });
  };
  // What the decoders do to their maps at 448 pixels.
  for (const auto& [channels, side, out] : {std::array<int64_t, 3>{64, 14, 28}, {64, 28, 56}, {64, 56, 112}, {128, 14, 56},
                                            {1, 14, 448}, {1, 56, 448}, {1, 112, 448}, {1, 448, 224}, {64, 28, 14}}) {
    rows("resize", Layer::resized, {24, channels, side, out});
    rows("resize_backward", Layer::resize, {24, channels, side, out});
  }
  for (const auto& [channels, side, out] : {std::array<int64_t, 3>{128, 56, 28}, {320, 28, 7}, {64, 56, 7}, {512, 14, 1}}) {
    rows("average_pool_backward", Layer::average_pool, {24, channels, side, out});
    rows("max_pool_backward", Layer::max_pool, {24, channels, side, out});
  }
  // The feed-forward layers of PVTv2-B2 at 448 pixels, and a 7 x 7 filter of ConvNeXt; step: forward and all gradients.
  for (const auto& [channels, side, k] : {std::array<int64_t, 3>{512, 112, 3}, {1024, 56, 3}, {1280, 28, 3}, {2048, 14, 3},
                                          {128, 56, 7}})
    for (const bool gelu : {false, true})
      for (const bool step : {false, true})
        for (const bool kernel : {true, false}) {
          const Shape s{12, channels, side, k};
          const std::string name = std::string("depthwise") + (gelu ? "_gelu" : "") + (step ? "_step" : "") + "/B:12/C:" +
                                   std::to_string(channels) + "/H:" + std::to_string(side) + "/k:" + std::to_string(k);
          add(name + (kernel ? "/by:kernel" : "/by:libtorch"),
              [=](benchmark::State& t) { depthwise(t, s, gelu, step, kernel); });
        }
  for (const auto& [rows, width] : {std::array<int64_t, 2>{150528, 64}, {37632, 128}, {9408, 320}, {2352, 512}})
    for (const bool step : {false, true})
      for (const bool kernel : {true, false})
        add(std::string("layer_norm") + (step ? "_step" : "") + "/rows:" + std::to_string(rows) + "/C:" +
                std::to_string(width) + (kernel ? "/by:kernel" : "/by:libtorch"),
            [=](benchmark::State& t) { layer_norm(t, rows, width, step, kernel); });
}

}  // namespace
}  // namespace moecod::bench

int main(int argc, char** argv) {
  moecod::bench::add_layers();
  return moecod::bench::run(argc, argv);
}
