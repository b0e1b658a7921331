// moecod::grouped_linear and the operators of SwiGLU experts against float64, expert by expert.
#include "moecod/layers/linear.hpp"

#include <c10/cuda/CUDAFunctions.h>

#include "moecod/expert/swiglu.hpp"
#include "moecod/moe/combine.hpp"
#include "tests/cuda/on_cuda.hpp"

namespace moecod::on_cuda {
namespace {

using layers::Activation;

/// Offsets of experts with such numbers of rows.
at::Tensor offsets_of(const std::vector<int64_t>& rows, at::Device device = at::kCUDA) {
  std::vector<int32_t> out{0};
  for (int64_t n : rows) out.push_back(out.back() + static_cast<int32_t>(n));
  return at::tensor(out, at::kInt).to(device);
}

/// y, d_x, d_weight, d_bias.
Tensors results(const at::Tensor& y, const Tensors& inputs) {
  const at::Tensor number = at::arange(y.numel(), y.options().dtype(at::kDouble)).view_as(y);
  const at::Tensor weight = number.mul(0.37).sin().to(at::kBFloat16).to(y.scalar_type());
  Tensors out{y};
  for (const at::Tensor& grad : torch::autograd::grad({(y * weight).sum()}, inputs)) out.push_back(grad);
  return out;
}

Tensors by_operator(const Tensors& in, const at::Tensor& offsets, Activation activation) {
  const at::Tensor y = operators::find<operators::GroupedLinear>()->call(
      in[0], in[1], in.size() > 2 ? std::optional(in[2]) : std::nullopt, offsets, name_of(activation), std::nullopt);
  return results(y, in);
}

Tensors by_experts(const Tensors& in, const std::vector<int64_t>& rows, Activation activation) {
  std::vector<at::Tensor> out;
  int64_t begin = 0;
  for (std::size_t e = 0; e < rows.size(); ++e) {
    out.push_back(at::linear(layers::activate(in[0].slice(0, begin, begin + rows[e]), activation), in[1][e],
                             in.size() > 2 ? in[2][e] : at::Tensor()));
    begin += rows[e];
  }
  return results(at::cat(out), in);
}

Tensors as(const Tensors& in, at::ScalarType type) {
  Tensors out;
  for (const at::Tensor& t : in) out.push_back(t.detach().to(type).set_requires_grad(true));
  return out;
}

void compare(const std::vector<int64_t>& rows, int64_t in, int64_t out, Activation activation, bool bias,
             at::ScalarType type, bool kernel, int64_t middle = 0) {
  SCOPED_TRACE(::testing::Message() << rows.size() << " experts, " << in << " to " << out << ", "
                                    << name_of(activation));
  int64_t all = 0;
  for (int64_t n : rows) all += n;
  std::vector<int64_t> sizes{all, activation == Activation::swiglu ? 2 * in : in};
  if (middle) sizes.insert(sizes.begin() + 1, middle);
  const auto experts = static_cast<int64_t>(rows.size());
  Tensors inputs{at::randn(sizes, on(at::kFloat)),
                 at::randn({experts, out, in}, on(at::kFloat)) / std::sqrt(static_cast<double>(in))};
  if (bias) inputs.push_back(at::randn({experts, out}, on(at::kFloat)));
  const Tensors given = as(inputs, type);
  const int64_t before = operators::fallbacks();
  const Tensors got = by_operator(given, offsets_of(rows), activation);
  EXPECT_EQ(operators::fallbacks() - before, kernel ? 0 : 2);
  const Tensors exact = by_experts(as(given, at::kDouble), rows, activation);
  const char* names[] = {"y", "d_x", "d_weight", "d_bias"};
  for (std::size_t i = 0; i < got.size(); ++i) {
    EXPECT_EQ(got[i].scalar_type(), type);
    EXPECT_LE(relative_error(got[i], exact[i]), type == at::kFloat ? 2e-6 : 1e-2) << names[i];
  }
}

/// Whether at::_grouped_mm has a kernel for this device.
bool has_kernel() {
  const int major = at::cuda::getCurrentDeviceProperties()->major;
  return major == 9 || major == 10;
}

TEST(GroupedLinear, EqualsFloat64_CUDA) {
  MOECOD_NEEDS_CUDA();
  if (!has_kernel()) GTEST_SKIP() << "no kernel for this device";
  torch::manual_seed(1);
  for (Activation activation : {Activation::none, Activation::gelu, Activation::swiglu})
    for (bool bias : {false, true}) {
      compare({37, 0, 1, 300, 64, 0}, 64, 96, activation, bias, at::kBFloat16, true);
      compare({700}, 8, 8, activation, bias, at::kBFloat16, true);
      compare({5, 0, 9}, 24, 40, activation, bias, at::kBFloat16, true, /*middle=*/7);
    }
  compare(std::vector<int64_t>(128, 3), 320, 1280, Activation::none, true, at::kBFloat16, true);
  // Neighbouring tiles of one expert and of two, several tiles a block, widths that are no multiple of a tile's.
  for (Activation activation : {Activation::none, Activation::swiglu}) {
    compare({1280, 0, 1, 2999, 127, 129, 128}, 328, 1288, activation, false, at::kBFloat16, true);
    compare({3000, 0, 1, 2000}, 1288, 328, activation, false, at::kBFloat16, true);
    compare({300, 1, 0, 128}, 136, 1160, activation, false, at::kBFloat16, true);
  }
  // Large weights: tiles expert after expert, an odd one in two columns, of even and of odd columns.
  compare({1024, 640, 0, 1, 130, 700}, 2056, 1032, Activation::none, false, at::kBFloat16, true);
  compare({100, 0, 129, 128, 1, 2900}, 776, 1544, Activation::none, false, at::kBFloat16, true);
  compare({2100, 0, 129, 1, 2900}, 1032, 2048, Activation::none, false, at::kBFloat16, true);  // 17 and 23 pieces
  // Gradients of weights whose tiles are a little more than a turn of 132 multiprocessors; also with several pieces.
  compare({3000, 2950, 3050, 2900, 3100}, 384, 1792, Activation::none, false, at::kBFloat16, true);
  compare({7001, 2000, 0, 2999, 3000}, 384, 1792, Activation::none, false, at::kBFloat16, true);
  compare({20, 14970, 0, 0, 10}, 384, 1792, Activation::none, false, at::kBFloat16, true);
  compare(std::vector<int64_t>(8, 3000), 328, 1032, Activation::none, false, at::kBFloat16, true);
  compare(std::vector<int64_t>(6, 4000), 392, 1800, Activation::none, false, at::kBFloat16, true);
  compare(std::vector<int64_t>(8, 12544), 320, 2560, Activation::none, false, at::kBFloat16, true);
}

TEST(GroupedLinear, OperandsMayLieAnywhere_CUDA) {
  MOECOD_NEEDS_CUDA();
  if (!has_kernel()) GTEST_SKIP() << "no kernel for this device";
  torch::manual_seed(8);
  const auto two_bytes_off = [](const at::Tensor& t) {
    return at::cat({t.new_zeros({1}), t.flatten()}).slice(0, 1).view(t.sizes());
  };
  const at::Tensor offsets = offsets_of({37, 0, 1, 300, 96});
  const Tensors in = as({at::randn({434, 128}, on(at::kFloat)), at::randn({5, 96, 64}, on(at::kFloat))}, at::kBFloat16);
  const at::Tensor seed = at::randn({434, 96}, on(at::kBFloat16));
  const auto run = [&](const Tensors& operands, const at::Tensor& grad) {
    const at::Tensor y = operators::find<operators::GroupedLinear>()->call(operands[0], operands[1], std::nullopt, offsets, "swiglu",
                                                                           std::nullopt);
    Tensors out{y};
    for (const at::Tensor& d : torch::autograd::grad({y}, operands, {grad})) out.push_back(d);
    return out;
  };
  const Tensors expected = run(in, seed);
  const Tensors off{two_bytes_off(in[0].detach()).set_requires_grad(true), two_bytes_off(in[1].detach()).set_requires_grad(true)};
  const int64_t before = operators::fallbacks();
  const Tensors got = run(off, two_bytes_off(seed));
  EXPECT_EQ(operators::fallbacks(), before);
  for (std::size_t i = 0; i < got.size(); ++i) EXPECT_TRUE(at::equal(got[i], expected[i])) << i;
}

TEST(GroupedLinear, OtherTypesAndOddWidthsFallBack_CUDA) {
  MOECOD_NEEDS_CUDA();
  torch::manual_seed(2);
  for (Activation activation : {Activation::none, Activation::gelu, Activation::swiglu}) {
    compare({37, 0, 1, 90}, 64, 96, activation, true, at::kFloat, false);
    compare({37, 0, 1, 90}, 35, 33, activation, true, at::kBFloat16, false);
  }
}

TEST(GroupedLinear, IdleExpertsHaveZeroGradients_CUDA) {
  MOECOD_NEEDS_CUDA();
  const Tensors in = as({at::randn({40, 16}, on(at::kFloat)), at::randn({5, 24, 16}, on(at::kFloat)),
                         at::randn({5, 24}, on(at::kFloat))},
                        at::kBFloat16);
  for (int i = 0; i < 20; ++i) {
    at::full({1 << 20}, NAN, on(at::kBFloat16));  // what lies in memory that is handed out next
    const Tensors got = by_operator(in, offsets_of({0, 30, 0, 10, 0}), Activation::none);
    for (int64_t e : {0, 2, 4})
      for (const at::Tensor& grad : {got[2], got[3]}) EXPECT_EQ(grad[e].abs().sum().item<double>(), 0) << e;
  }
}

TEST(GroupedLinear, RepeatsBitwiseAndDoesNotWait_CUDA) {
  MOECOD_NEEDS_CUDA();
  if (!has_kernel()) GTEST_SKIP() << "no kernel for this device";
  torch::manual_seed(3);
  const Tensors in = as({at::randn({3000, 256}, on(at::kFloat)), at::randn({6, 128, 128}, on(at::kFloat)),
                         at::randn({6, 128}, on(at::kFloat))},
                        at::kBFloat16);
  const at::Tensor offsets = offsets_of({1000, 0, 7, 993, 500, 500});
  const at::Tensor seed = at::ones({3000, 128}, on(at::kBFloat16));
  const auto step = [&] {
    const at::Tensor y =
        operators::find<operators::GroupedLinear>()->call(in[0], in[1], in[2], offsets, "swiglu", std::nullopt);
    Tensors out{y};
    for (const at::Tensor& grad : torch::autograd::grad({y}, {in[0], in[1], in[2]}, {seed})) out.push_back(grad);
    return out;
  };
  expect_repeats(step);
  expect_waits_never(step);
  expect_captures(step, [&](int i) { offsets.copy_(offsets_of({500 + i, 500, 7, 993 - i, 0, 1000})); });
}

TEST(GroupedSwiGlu, EqualsFloat64_CUDA) {
  MOECOD_NEEDS_CUDA();
  const bool kernel = is_hopper();
  torch::manual_seed(5);
  using Case = std::tuple<std::vector<int64_t>, int64_t, int64_t, int64_t>;
  for (const auto& [rows, in, hidden, middle] : std::vector<Case>{
           {{37, 0, 1, 300, 64, 0}, 64, 128, 0}, {{130, 127, 0}, 320, 1280, 0}, {{5, 0, 9}, 24, 40, 7},
           {{1000}, 8, 8, 0}, {std::vector<int64_t>(128, 3), 128, 200, 0}, {{70, 0, 5}, 1536, 64, 3}}) {
    const auto experts = static_cast<int64_t>(rows.size());
    int64_t all = 0;
    for (int64_t n : rows) all += n;
    std::vector<int64_t> sizes{all, in};
    if (middle) sizes.insert(sizes.begin() + 1, middle);
    const at::Tensor x = at::randn(sizes, on(at::kBFloat16));
    const at::Tensor w = at::randn({experts, 2 * hidden, in}, on(at::kBFloat16)) / std::sqrt(static_cast<double>(in));
    const int64_t before = operators::fallbacks();
    const at::Tensor got = operators::find<operators::GroupedSwiGlu>()->call(x, w, offsets_of(rows), std::nullopt, std::nullopt);
    EXPECT_EQ(operators::fallbacks() == before, kernel);
    std::vector<at::Tensor> exact;
    int64_t begin = 0;
    for (int64_t e = 0; e < experts; begin += rows[e++])
      exact.push_back(layers::activate(
          at::linear(x.slice(0, begin, begin + rows[e]).to(at::kDouble), w[e].to(at::kDouble)), Activation::swiglu));
    EXPECT_LE(relative_error(got, at::cat(exact)), 1e-2) << experts << " experts, " << in << " to " << hidden;
  }
}

/// y and the gradients of x and the weights of SwiGLU experts.
Tensors by_swiglu(expert::SwiGlu<layers::Stacked>& expert, const at::Tensor& x, const at::Tensor& offsets) {
  Tensors inputs = expert.parameters();
  inputs.push_back(x);
  return results(expert.forward(x, layers::Stacked::Group::sorted(offsets)), inputs);
}

TEST(SwiGlu, EqualsFloat64_CUDA) {
  MOECOD_NEEDS_CUDA();
  torch::manual_seed(7);
  using Case = std::tuple<std::vector<int64_t>, int64_t, int64_t>;
  for (const auto& [rows, channels, hidden] : std::vector<Case>{{{1280, 0, 1, 2999, 127, 129, 128}, 320, 328},
                                                                {{37, 0, 1, 300, 64, 0}, 64, 128},
                                                                {{5, 0, 9}, 24, 40},
                                                                {{256}, 8, 8},
                                                                {{3, 250, 7}, 1032, 136},
                                                                {{700, 0, 129, 256}, 1040, 600},
                                                                {{2300, 0, 129, 1}, 1040, 600},
                                                                {std::vector<int64_t>(256, 2), 1040, 24},
                                                                {std::vector<int64_t>(256, 2), 64, 24},
                                                                {std::vector<int64_t>(128, 3), 128, 200}}) {
    SCOPED_TRACE(::testing::Message() << rows.size() << " experts, " << channels << " and " << hidden);
    const auto experts = static_cast<int64_t>(rows.size());
    int64_t all = 0;
    for (int64_t n : rows) all += n;
    expert::SwiGlu<layers::Stacked> expert({.channels = channels, .hidden = hidden}, layers::Stacked{experts});
    for (auto& p : expert.parameters()) p.data().normal_(0, 1 / std::sqrt(static_cast<double>(p.size(2))));
    expert.to(at::kCUDA, at::kBFloat16);
    const at::Tensor x = at::randn({all, channels}, on(at::kBFloat16)).set_requires_grad(true);
    const at::Tensor offsets = offsets_of(rows);
    const Tensors got = by_swiglu(expert, x, offsets);
    if (has_kernel()) expect_repeats([&] { return by_swiglu(expert, x, offsets); });
    expert.to(at::kDouble);
    const Tensors exact = by_swiglu(expert, x.detach().to(at::kDouble).set_requires_grad(true), offsets);
    for (std::size_t i = 0; i < got.size(); ++i) EXPECT_LE(relative_error(got[i], exact[i]), 1e-2) << i;
  }
}

/// Rows of a mixture: each to `slots` experts, of which a few are not used, with weights that learn.
Tensors combined_swiglu(expert::SwiGlu<layers::Stacked>& expert, const at::Tensor& x, const Routing& routing,
                        bool at_once, bool rows_too) {
  const Plan plan(routing);
  const auto group = layers::Stacked::Group::sorted(plan.offsets);
  at::Tensor y, rows;
  if (at_once) {
    const auto both = expert.forward_dispatched(x, group, routing.weights, plan.order, plan.position);
    TORCH_CHECK(both, "the experts do not combine their rows");
    std::tie(y, rows) = *both;
  } else {
    rows = expert.forward(gather(x, plan), group);
    y = combine(rows, routing.weights, plan);
  }
  Tensors inputs = expert.parameters();
  inputs.push_back(x);
  inputs.push_back(routing.weights);
  const at::Tensor seed = at::cos(at::arange(y.numel(), y.options().dtype(at::kFloat)) * 1.7).view_as(y).to(at::kBFloat16).to(y.dtype());
  at::Tensor objective = (y * seed).sum();
  if (rows_too) objective = objective + (rows * rows).sum() * 0.1;
  Tensors out = torch::autograd::grad({objective}, inputs);
  out.push_back(y);
  return out;
}

TEST(SwiGlu, CombinesAtOnceAsInTwoSteps_CUDA) {
  MOECOD_NEEDS_CUDA();
  torch::manual_seed(9);
  using Case = std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, at::ScalarType>;
  for (const auto& [count, slots, experts, channels, hidden, type] :
       std::vector<Case>{{700, 2, 5, 320, 312, at::kBFloat16},
                         {300, 4, 7, 64, 40, at::kBFloat16},
                         {500, 2, 3, 1040, 600, at::kBFloat16},
                         {500, 2, 3, 1040, 520, at::kBFloat16},
                         {6000, 3, 5, 1096, 136, at::kBFloat16},
                         {5000, 2, 4, 328, 320, at::kBFloat16},
                         {40, 1, 2, 24, 8, at::kBFloat16},
                         {90, 1, 1, 64, 32, at::kBFloat16},
                         {30, 2, 4, 10, 6, at::kFloat}}) {
    SCOPED_TRACE(::testing::Message() << count << " rows, " << channels << " and " << hidden << ", " << type);
    expert::SwiGlu<layers::Stacked> expert({.channels = channels, .hidden = hidden}, layers::Stacked{experts});
    for (auto& p : expert.parameters()) p.data().normal_(0, 1 / std::sqrt(static_cast<double>(p.size(2))));
    expert.to(at::kCUDA, type);
    const at::Tensor x = at::randn({count, channels}, on(type)).set_requires_grad(true);
    const auto choose = [&, count = count, slots = slots, experts = experts] {
      const at::Tensor chosen = std::get<1>(at::rand({count, experts}, on(at::kFloat)).topk(slots)).to(at::kInt);
      if (slots > 1) chosen.select(1, 1).slice(0, 0, 9).fill_(-1);
      return chosen;
    };
    Routing routing = Routing::given(choose(), at::rand({count, slots}, on(at::kFloat)) + 0.1, experts);
    routing.weights.set_requires_grad(true);
    for (bool rows_too : {false, true}) {
      const auto run = [&] { return combined_swiglu(expert, x, routing, true, rows_too); };
      if (has_kernel()) expect_repeats(run);
      if (has_kernel() && type == at::kBFloat16)
        expect_captures(run, [&](int) {
          const torch::NoGradGuard no_grad;
          routing.experts.copy_(choose());
          routing.weights.uniform_(0.1, 1.1);
        });
      const Tensors got = run();
      expert.to(at::kDouble);
      Routing wide = routing;
      wide.weights = routing.weights.detach().to(at::kDouble).set_requires_grad(true);
      const Tensors exact =
          combined_swiglu(expert, x.detach().to(at::kDouble).set_requires_grad(true), wide, false, rows_too);
      for (std::size_t i = 0; i < got.size(); ++i)
        EXPECT_LE(relative_error(got[i], exact[i]), type == at::kFloat ? 1e-4 : 1e-2) << i << ", rows " << rows_too;
      expert.to(type);
    }
    const torch::NoGradGuard no_grad;
    const Plan plan(routing);
    const auto group = layers::Stacked::Group::sorted(plan.offsets);
    const auto infer = [&] {
      const auto both = expert.forward_dispatched(x, group, routing.weights, plan.order, plan.position);
      return Tensors{both->first, both->second};
    };
    const Tensors got = infer();
    if (has_kernel()) expect_repeats(infer);
    const at::Tensor rows = expert.forward(gather(x, plan), group);
    EXPECT_TRUE(at::equal(got[1], rows));
    EXPECT_TRUE(at::equal(got[0], combine(rows, routing.weights, plan)));
  }
}

/// The most bytes that f holds above what was there before it.
template <class F>
int64_t peak_of(F&& f) {
  namespace allocator = c10::cuda::CUDACachingAllocator;
  const int64_t before = allocated();
  allocator::resetPeakStats(0);
  f();
  return allocator::getDeviceStats(0).allocated_bytes[0].peak - before;
}

TEST(SwiGlu, SortsRowsWithoutWritingThem_CUDA) {
  MOECOD_NEEDS_HOPPER();
  constexpr int64_t count = 4096, slots = 4, experts = 8, channels = 1280, hidden = 16, rows = count * slots;
  expert::SwiGlu<layers::Stacked> expert({.channels = channels, .hidden = hidden}, layers::Stacked{experts});
  expert.to(at::kCUDA, at::kBFloat16);
  const at::Tensor x = at::randn({count, channels}, on(at::kBFloat16)), d_y = at::randn_like(x);
  const Routing routing = Routing::given(std::get<1>(at::rand({count, experts}, on(at::kFloat)).topk(slots)),
                                         at::rand({count, slots}, on(at::kFloat)), experts);
  const Plan plan(routing);
  const auto group = layers::Stacked::Group::sorted(plan.offsets);
  constexpr int64_t of_rows = rows * channels * 2, of_hidden = rows * hidden * 2, of_y = count * channels * 2;
  const auto forward = [&] {
    return expert.forward_dispatched(x, group, routing.weights, plan.order, plan.position)->first;
  };
  for (const bool records : {false, true}) {
    const at::AutoGradMode mode(records);
    forward();
    EXPECT_LT(peak_of(forward), 3 * of_hidden + of_rows + of_y + (1 << 20)) << "sorted rows would add " << of_rows;
  }
  const at::Tensor y = forward();
  const auto backward = [&] { return torch::autograd::grad({y}, expert.parameters(), {d_y}, /*retain_graph=*/true); };
  backward();
  EXPECT_LT(peak_of(backward), of_rows) << "gradients of rows would take as much";
}

TEST(SwiGlu, InferenceEqualsTraining_CUDA) {
  MOECOD_NEEDS_CUDA();
  torch::manual_seed(6);
  expert::SwiGlu<layers::Stacked> expert({.channels = 64, .hidden = 96}, layers::Stacked{3});
  for (auto& p : expert.parameters()) p.data().normal_(0, 0.1);
  expert.to(at::kCUDA, at::kBFloat16);
  const at::Tensor x = at::randn({300, 64}, on(at::kBFloat16));
  const auto group = layers::Stacked::Group::sorted(offsets_of({100, 0, 200}));
  const at::Tensor training = expert.forward(x, group);
  const torch::NoGradGuard no_grad;
  EXPECT_LE(relative_error(expert.forward(x, group), training), 1e-2);
}

TEST(SwiGlu, KeepsTheHiddenLayerBeforeItsActivationOnly_CUDA) {
  MOECOD_NEEDS_CUDA();
  if (!has_kernel()) GTEST_SKIP() << "no kernel for this device";
  constexpr int64_t rows = 1 << 14, channels = 256, hidden = 1024;
  expert::SwiGlu<layers::Stacked> expert({.channels = channels, .hidden = hidden}, layers::Stacked{4});
  expert.to(at::kCUDA, at::kBFloat16);
  const at::Tensor x = at::randn({rows, channels}, on(at::kBFloat16)).set_requires_grad(true);
  const auto group = layers::Stacked::Group::sorted(offsets_of({rows / 2, 0, rows / 4, rows / 4}));
  expert.forward(x, group);
  const int64_t before = allocated();
  const at::Tensor y = expert.forward(x, group);
  const int64_t kept = allocated() - before - y.numel() * 2;
  EXPECT_LE(kept, rows * 2 * hidden * 2 + (1 << 20)) << "bytes; the activation would add " << rows * hidden * 2;
}

TEST(Linear, ByTheOperatorUnderAutocast_CUDA) {
  MOECOD_NEEDS_CUDA();
  torch::manual_seed(4);
  layers::Linear<layers::Stacked> layer(32, 48, true, layers::Stacked{3});
  {
    const torch::NoGradGuard no_grad;
    layer.weight.normal_();
    layer.bias.normal_();
  }
  const at::Tensor x = at::randn({20, 32});
  const at::Tensor exact = layer.forward(x, layers::Stacked::Group::sorted(offsets_of({5, 15, 0}, at::kCPU)));
  layer.to(at::kCUDA);
  at::autocast::set_autocast_enabled(at::kCUDA, true);
  at::autocast::set_autocast_dtype(at::kCUDA, at::kBFloat16);
  const at::Tensor y = layer.forward(x.cuda(), layers::Stacked::Group::sorted(offsets_of({5, 15, 0})));
  at::autocast::clear_cache();
  at::autocast::set_autocast_enabled(at::kCUDA, false);
  EXPECT_EQ(y.scalar_type(), at::kBFloat16);
  EXPECT_LE(relative_error(y.cpu(), exact), 1e-2);
  y.sum().backward();
  EXPECT_EQ(layer.weight.grad().scalar_type(), at::kFloat);
}

}  // namespace
}  // namespace moecod::on_cuda
