// Mixtures of experts on a GPU in bfloat16, forward and forward with backward: the dispatchers against each other,
// against one expert of the same shape on the same rows (convolutional experts), and against the recipe of today's
// libraries written on LibTorch's operations (feed-forward experts over positions).
//
//     bench_gpu_experts --benchmark_out=experts.json --benchmark_out_format=json
//     python bench/gpu_table.py experts.json
#include <ATen/ops/_grouped_mm.h>

#include <chrono>
#include <thread>

#include "bench/gpu.hpp"
#include "bench/seed_batching.hpp"
#include "moecod/expert/conv.hpp"
#include "moecod/expert/swiglu.hpp"
#include "moecod/moe/balance/none.hpp"
#include "moecod/moe/dispatch/batched.hpp"
#include "moecod/moe/dispatch/grouped.hpp"
#include "moecod/moe/dispatch/sequential.hpp"
#include "moecod/moe/experts/replicated.hpp"
#include "moecod/moe/mixture.hpp"
#include "moecod/moe/select/top_k.hpp"

namespace moecod::bench {
namespace {

using Tensors = std::vector<at::Tensor>;
constexpr auto channels_last = at::MemoryFormat::ChannelsLast;

at::TensorOptions on(at::ScalarType type) { return at::TensorOptions().dtype(type).device(at::kCUDA); }

/// `rested`: replayed as `graph`, but after a second in which the device did nothing. Large products soon draw more power than it
/// may, some tenths of a second after the first, and what ran before a case shows in its time; here it does not.
enum class By { eager, graph, rested };

/// Times call(), which returns what it computed; the median of rounds of several calls. `peak_MB`: the most that live
/// tensors took during a call, above what was there before it.
void measure(benchmark::State& state, By by, double flops, const std::function<Tensors()>& call) {
  for (int i = 0; i < 3; ++i) call();
  at::cuda::device_synchronize();
  auto stats = c10::cuda::CUDACachingAllocator::getDeviceStats(0).allocated_bytes[0];
  const int64_t before = stats.current;
  c10::cuda::CUDACachingAllocator::resetPeakStats(0);
  const double once = median_seconds([&] { call(); }, 3);
  const int64_t peak = c10::cuda::CUDACachingAllocator::getDeviceStats(0).allocated_bytes[0].peak;
  const int calls = std::clamp(static_cast<int>(4e-3 / once), 1, 20), rounds = once > 0.02 ? 3 : 11;
  const auto all = [&] {
    for (int i = 0; i < calls; ++i) call();
  };
  at::cuda::CUDAGraph captured;
  if (by != By::eager) {
    captured.capture_begin();
    all();
    captured.capture_end();
  }
  const auto round = [&] { by == By::eager ? all() : captured.replay(); };
  round();
  at::cuda::device_synchronize();
  if (by == By::rested) {
    std::this_thread::sleep_for(std::chrono::seconds(1));
    round();  // clocks rise again
    at::cuda::device_synchronize();
  }
  double seconds = 0;
  for (auto _ : state) state.SetIterationTime(seconds = median_seconds(round, rounds) / calls);
  state.counters["peak_MB"] = static_cast<double>(peak - before) / 1e6;
  state.counters["tflops"] = flops / seconds / 1e12;
}

/// y, and with `backward` the gradients of x and all parameters.
template <class Forward>
std::function<Tensors()> step(const Forward& forward, const at::Tensor& x, Tensors parameters, bool backward,
                              const at::Tensor& seed) {
  parameters.push_back(x);
  return [=]() -> Tensors {
    const torch::AutoGradMode record(backward);
    const at::Tensor y = forward(x);
    if (!backward) return {y};
    return torch::autograd::grad({y}, parameters, {seed}, /*retain_graph=*/false, /*create_graph=*/false,
                                 /*allow_unused=*/true);
  };
}

// -------------------------------------------------------------------------------------------- convolutional experts

constexpr int64_t conv_experts = 6;
using ConvStore = Replicated<expert::Conv<>, conv_experts>;

struct ConvShape {
  int64_t batch, channels, side;
  double flops(bool backward) const {
    return (backward ? 3 : 1) * 2.0 * 2 * batch * 2 * side * side * channels * channels * 9;
  }
  std::string text() const {
    return "/B:" + std::to_string(batch) + "/C:" + std::to_string(channels) + "/H:" + std::to_string(side);
  }
};

/// The convolutions' weights in bfloat16, channels last; the normalisations stay float32.
void for_tensor_cores(torch::nn::Module& module) {
  const torch::NoGradGuard no_grad;
  module.to(at::kCUDA);
  for (auto& p : module.parameters()) {
    if (p.dim() == 4) p.set_data(p.to(at::kBFloat16).contiguous(channels_last));
    if (p.dim() == 5)
      p.set_data(p.to(at::kBFloat16).permute({0, 1, 3, 4, 2}).contiguous().permute({0, 1, 4, 2, 3}));
  }
}

/// Every image to two of the experts: evenly, or all to the same two.
Routing conv_routing(int64_t batch, const std::string& load) {
  const at::Tensor n = at::arange(batch, on(at::kLong));
  const at::Tensor first =
      load == "one" ? at::zeros_like(n) : (n * 5 + n.floor_divide(conv_experts)).remainder(conv_experts);
  const at::Tensor second = (first + 1 + (load == "one" ? at::zeros_like(n) : n.floor_divide(3).remainder(5)))
                                .remainder(conv_experts);
  return Routing::given(at::stack({first, second}, 1), at::rand({batch, 2}, on(at::kFloat)) + 0.1, conv_experts);
}

template <class Dispatch>
void conv(benchmark::State& state, const ConvShape& s, bool backward, By by, const std::string& load) {
  torch::manual_seed(1);
  ConvStore store({.channels = s.channels});
  for_tensor_cores(store);
  const at::Tensor x = at::randn({s.batch, s.channels, s.side, s.side}, on(at::kBFloat16))
                           .contiguous(channels_last)
                           .set_requires_grad(backward);
  const Routing routing = conv_routing(s.batch, load);
  const auto forward = [&](const at::Tensor& in) { return Dispatch::run(store, in, routing).y; };
  measure(state, by, s.flops(backward), step(forward, x, store.parameters(), backward, at::randn_like(x)));
}

/// One expert of LibTorch's modules on as many images.
void conv_bound(benchmark::State& state, const ConvShape& s, bool backward, By by) {
  torch::manual_seed(1);
  const auto convolution = torch::nn::Conv2dOptions(s.channels, s.channels, 3).padding(1).bias(false);
  torch::nn::Sequential expert(torch::nn::Conv2d(convolution), torch::nn::BatchNorm2d(s.channels), torch::nn::ReLU(),
                               torch::nn::Conv2d(convolution), torch::nn::BatchNorm2d(s.channels), torch::nn::ReLU());
  for_tensor_cores(*expert);
  const at::Tensor x = at::randn({2 * s.batch, s.channels, s.side, s.side}, on(at::kBFloat16))
                           .contiguous(channels_last)
                           .set_requires_grad(backward);
  const auto forward = [&](const at::Tensor& in) { return expert->forward(in); };
  measure(state, by, s.flops(backward), step(forward, x, expert->parameters(), backward, at::randn_like(x)));
}

void add_conv() {
  at::globalContext().setBenchmarkCuDNN(true);
  for (int64_t batch : {12, 64})
    for (const auto& [channels, side] : {std::pair{64, 112}, {128, 56}, {320, 28}, {512, 14}})
      for (bool backward : {false, true}) {
        const ConvShape s{batch, channels, side};
        const std::string name = std::string("conv_experts/") + (backward ? "pass:both" : "pass:forward") + s.text();
        const auto row = [&](const std::string& by, auto&& f) { add(name + "/by:" + by, f); };
        row("sequential", [=](benchmark::State& t) { conv<dispatch::Sequential>(t, s, backward, By::eager, "even"); });
        row("seed", [=](benchmark::State& t) { conv<SeedBatching>(t, s, backward, By::eager, "even"); });
        row("batched", [=](benchmark::State& t) { conv<dispatch::Batched>(t, s, backward, By::eager, "even"); });
        row("grouped", [=](benchmark::State& t) { conv<dispatch::Grouped>(t, s, backward, By::eager, "even"); });
        row("bound", [=](benchmark::State& t) { conv_bound(t, s, backward, By::eager); });
        row("grouped_graph", [=](benchmark::State& t) { conv<dispatch::Grouped>(t, s, backward, By::graph, "even"); });
        row("skewed_graph", [=](benchmark::State& t) { conv<dispatch::Grouped>(t, s, backward, By::graph, "one"); });
        row("bound_graph", [=](benchmark::State& t) { conv_bound(t, s, backward, By::graph); });
      }
}

// ---------------------------------------------------------------------------------------- feed-forward over positions

/// The router of language models: one product. Its bias, zero at first, sends rows where a load wants them.
class Product : public torch::nn::Module {
 public:
  using policy_kind = kind::router;
  using granularity = rows::Positions;
  struct Options {
    int64_t experts = 1, channels = 1;
  };
  Product() : Product(Options()) {}
  explicit Product(const Options& options) {
    weight_ = register_parameter(
        "weight", at::randn({options.experts, options.channels}) / std::sqrt(double(options.channels)));
    bias = register_buffer("bias", at::zeros({options.experts}));
  }
  at::Tensor forward(const at::Tensor& x) { return at::linear(x, weight_, bias); }

  at::Tensor bias;

 private:
  at::Tensor weight_;
};

struct PositionShape {
  const char* name;
  int64_t rows, channels, hidden;
  double flops(int64_t k, bool backward) const { return (backward ? 18.0 : 6.0) * rows * k * hidden * channels; }
};

/// `load`: "even", or "one" for all rows to the same K experts.
template <class Dispatch, int64_t E, int64_t K>
void position(benchmark::State& state, const PositionShape& s, bool backward, By by, const std::string& load) {
  torch::manual_seed(1);
  using Mine = Mixture<Product, Replicated<expert::SwiGlu<>, E>, select::TopK<K>, balance::None, Dispatch>;
  typename Mine::Options options;
  options.router.channels = options.experts.channels = s.channels;
  options.experts.hidden = s.hidden;
  // Initial values on the CPU, one expert at a time, would take minutes.
  Mine mixture = [&] {
    auto small = options;
    small.experts.hidden = 8;
    return Mine(small);
  }();
  TORCH_CHECK(s.channels != 8 && s.channels != 16,
              "d must be neither 8 nor 16, the small mixture's widths, by which its weights are told apart, got ", s.channels);
  mixture.to(at::kCUDA, at::kBFloat16);
  if (load == "one") mixture.router->bias.copy_(at::arange(E, on(at::kFloat)) * -20);
  for (auto& p : mixture.experts->parameters()) {
    auto sizes = p.sizes().vec();
    if (sizes[1] == 16) sizes[1] = 2 * s.hidden;
    if (sizes[2] == 8) sizes[2] = s.hidden;
    p.set_data(at::randn(sizes, on(at::kBFloat16)) / std::sqrt(static_cast<double>(sizes[2])));
  }
  const at::Tensor x = at::randn({s.rows, s.channels}, on(at::kBFloat16)).set_requires_grad(backward);
  const auto forward = [&](const at::Tensor& in) { return mixture.forward(in).y; };
  measure(state, by, s.flops(K, backward), step(forward, x, mixture.parameters(), backward, at::randn_like(x)));
}

/// Sort, three grouped products, weighted index_add: what libraries built on at::_grouped_mm do.
template <int64_t E, int64_t K>
void recipe(benchmark::State& state, const PositionShape& s, bool backward) {
  torch::manual_seed(1);
  const auto weight = [&](std::vector<int64_t> sizes) {
    return (at::randn(sizes, on(at::kBFloat16)) / std::sqrt(double(sizes.back()))).set_requires_grad(backward);
  };
  const at::Tensor router = weight({E, s.channels}), gate = weight({E, s.hidden, s.channels});
  const at::Tensor up = weight({E, s.hidden, s.channels}), down = weight({E, s.channels, s.hidden});
  const at::Tensor x = at::randn({s.rows, s.channels}, on(at::kBFloat16)).set_requires_grad(backward);
  const auto forward = [=](const at::Tensor& in) {
    const at::Tensor scores = at::linear(in, router).to(at::kFloat).softmax(-1);
    const auto [weights, experts] = scores.topk(K, -1);
    const auto [sorted, order] = experts.flatten().sort(/*stable=*/true, 0, /*descending=*/false);
    const at::Tensor ends = at::searchsorted(sorted, at::arange(E, on(at::kLong)), /*out_int32=*/true, /*right=*/true);
    const at::Tensor rows = order.floor_divide(K), chosen = in.index_select(0, rows);
    const at::Tensor h = at::silu(at::_grouped_mm(chosen, gate.transpose(1, 2), ends)) *
                         at::_grouped_mm(chosen, up.transpose(1, 2), ends);
    const at::Tensor out = at::_grouped_mm(h, down.transpose(1, 2), ends);
    const at::Tensor scaled = out * weights.flatten().index_select(0, order).unsqueeze(1).to(at::kBFloat16);
    return at::zeros_like(in).index_add(0, rows, scaled);
  };
  measure(state, By::eager, s.flops(K, backward),
          step(forward, x, {router, gate, up, down}, backward, at::randn_like(x)));
}

template <int64_t E, int64_t K>
void add_position(const PositionShape& s) {
  for (bool backward : {false, true}) {
    const std::string name = std::string("position_experts/") + (backward ? "pass:both" : "pass:forward") + "/shape:" +
                             s.name + "/T:" + std::to_string(s.rows) + "/d:" + std::to_string(s.channels) +
                             "/n:" + std::to_string(s.hidden) + "/E:" + std::to_string(E) + "/K:" + std::to_string(K);
    const auto row = [&](const std::string& by, auto&& f) { add(name + "/by:" + by, f); };
    row("batched", [=](benchmark::State& t) { position<dispatch::Batched, E, K>(t, s, backward, By::eager, "even"); });
    row("recipe", [=](benchmark::State& t) { recipe<E, K>(t, s, backward); });
    const auto grouped = [=](By by, const std::string& load) {
      return [=](benchmark::State& t) { position<dispatch::Grouped, E, K>(t, s, backward, by, load); };
    };
    row("grouped", grouped(By::eager, "even"));
    row("grouped_graph", grouped(By::graph, "even"));
    row("skewed_graph", grouped(By::graph, "one"));
    row("rested_graph", grouped(By::rested, "even"));
  }
}

/// TFLOP/s of a large product in bfloat16.
double product_ceiling() {
  const at::Tensor a = at::randn({8192, 8192}, on(at::kBFloat16)), b = at::randn({8192, 8192}, on(at::kBFloat16));
  for (int i = 0; i < 3; ++i) at::linear(a, b);
  return 2.0 * 8192 * 8192 * 8192 / median_seconds([&] { at::linear(a, b); }) / 1e12;
}

}  // namespace
}  // namespace moecod::bench

int main(int argc, char** argv) {
  using namespace moecod::bench;
  add_conv();
  add_position<8, 2>({"P1", 9408, 320, 1280});
  add_position<8, 2>({"P2", 37632, 128, 512});
  add_position<8, 2>({"P3", 50176, 320, 1280});
  add_position<128, 8>({"P4", 24576, 1536, 256});
  add_position<32, 2>({"P5", 24576, 1536, 1024});
  add_position<128, 8>({"P6", 32768, 2048, 768});
  add_position<8, 2>({"P7", 4096, 4096, 14336});
  if (torch::cuda::is_available()) benchmark::AddCustomContext("bfloat16_TFLOPs", std::to_string(product_ceiling()));
  return run(argc, argv);
}
