// moecod::gather and moecod::combine against LibTorch's operations and float64.
#include "moecod/moe/combine.hpp"

#include "moecod/moe/select/top_k.hpp"
#include "tests/cuda/on_cuda.hpp"

namespace moecod::on_cuda {
namespace {

/// A routing of rows to `slots` experts each; a share of the slots is unused.
Routing draw(int64_t rows, int64_t experts, int64_t slots, double unused, Load load = Load::uniform) {
  const at::Tensor chosen = std::get<1>(logits_of(load, rows, experts).sort(/*stable=*/true, 1, /*descending=*/true));
  at::Tensor index = chosen.slice(1, 0, slots).to(at::kInt).contiguous();
  if (unused > 0) index.masked_fill_(at::rand(index.sizes(), on(at::kFloat)).lt(unused), -1);
  return Routing::given(index, at::rand(index.sizes(), on(at::kFloat)) + 0.1, experts);
}

double tolerance(at::ScalarType type) { return type == at::kFloat ? 2e-6 : type == at::kHalf ? 1e-3 : 6e-3; }

/// y, d_x, d_weights of combine(2 * gather(x)), by the operators or by LibTorch's operations.
Tensors through(const at::Tensor& x0, const Routing& routing, const Plan& plan, bool operators, at::ScalarType type) {
  const at::Tensor x = x0.detach().to(type).set_requires_grad(true);
  const at::Tensor w =
      routing.weights.detach().to(type == at::kDouble ? at::kDouble : at::kFloat).set_requires_grad(true);
  const at::Tensor rows = (operators ? gather(x, plan) : detail::GatherFunction::apply(x, plan.rows())) * 2;
  const at::Tensor y = operators ? combine(rows, w, plan)
                                 : detail::CombineFunction::apply(rows, w, plan.order, plan.position);
  const at::Tensor weight = at::arange(y.numel(), on(at::kDouble)).view_as(y).mul(0.37).sin().to(y.scalar_type());
  const auto grads = torch::autograd::grad({(y * weight).sum()}, {x, w});
  return {y, grads[0], grads[1]};
}

void compare(at::IntArrayRef row, const Routing& routing, at::ScalarType type, bool channels_last = false) {
  const Plan plan(routing);
  std::vector<int64_t> sizes(row.vec());
  sizes.insert(sizes.begin(), routing.rows());
  SCOPED_TRACE(::testing::Message() << type << " x " << at::IntArrayRef(sizes) << " S " << routing.slots());
  at::Tensor x = at::randn(sizes, on(at::kFloat)).to(type);
  if (channels_last) x = x.contiguous(at::MemoryFormat::ChannelsLast);
  const int64_t before = operators::fallbacks();
  const Tensors got = through(x, routing, plan, true, type);
  EXPECT_EQ(operators::fallbacks(), before) << "the kernels take these";
  const Tensors exact = through(x, routing, plan, false, at::kDouble);
  const Tensors torch = through(x, routing, plan, false, type);
  const char* names[] = {"y", "d_x", "d_weights"};
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(got[i].scalar_type(), torch[i].scalar_type());
    EXPECT_LE(relative_error(got[i], exact[i]), tolerance(type)) << names[i];
    EXPECT_LE(relative_error(torch[i], exact[i]), 2 * tolerance(type)) << names[i] << " of LibTorch's operations";
  }
  EXPECT_TRUE(at::equal(gather(x, plan), at::index_select(x, 0, plan.rows()))) << "gather copies";
  if (channels_last) {
    EXPECT_TRUE(got[0].is_contiguous(at::MemoryFormat::ChannelsLast));
  }
}

TEST(CombineOperator, EqualsFloat64ForAllWidths_CUDA) {
  MOECOD_NEEDS_CUDA();
  torch::manual_seed(1);
  for (at::ScalarType type : {at::kFloat, at::kBFloat16, at::kHalf})
    for (int64_t width : {1, 2, 3, 7, 8, 35, 64, 140, 320, 1000, 4096})
      compare({width}, draw(257, 6, 2, 0.2), type);
}

TEST(CombineOperator, EqualsFloat64ForAllSlots_CUDA) {
  MOECOD_NEEDS_CUDA();
  torch::manual_seed(2);
  for (at::ScalarType type : {at::kFloat, at::kBFloat16})
    for (int64_t slots : {1, 2, 3, 4, 7, 8, 9, 20})
      for (double unused : {0.0, 0.5}) compare({48}, draw(301, 24, slots, unused), type);
}

TEST(CombineOperator, Images_CUDA) {
  MOECOD_NEEDS_CUDA();
  torch::manual_seed(3);
  for (bool channels_last : {false, true}) {
    compare({16, 28, 28}, draw(12, 6, 2, 0), at::kBFloat16, channels_last);
    compare({64, 56, 56}, draw(3, 4, 2, 0), at::kFloat, channels_last);
    compare({3, 5, 7}, draw(5, 4, 2, 0.3), at::kFloat, channels_last);
  }
}

TEST(CombineOperator, LoadsAndRows_CUDA) {
  MOECOD_NEEDS_CUDA();
  torch::manual_seed(4);
  for (Load load : {Load::uniform, Load::zipf, Load::one})
    for (int64_t rows : {1, 2, 33, 4097}) compare({72}, draw(rows, 8, 2, 0, load), at::kBFloat16);
  compare({8}, draw(1000003, 8, 2, 0.1), at::kFloat);
}

TEST(CombineOperator, PartsOfAPlan_CUDA) {
  MOECOD_NEEDS_CUDA();
  torch::manual_seed(5);
  const Routing routing = draw(500, 6, 2, 0.2);
  const Plan plan(routing);
  const at::Tensor host = plan.offsets.cpu();
  const at::Tensor x = at::randn({500, 40}, on(at::kFloat)).set_requires_grad(true);
  for (int e = 0; e < 6; ++e) {
    const int64_t begin = host[e].item<int64_t>(), end = host[e + 1].item<int64_t>();
    const at::Tensor rows = plan.rows().slice(0, begin, end), got = gather(x, plan, begin, end);
    ASSERT_TRUE(at::equal(got, x.index_select(0, rows)));
    const at::Tensor weight = at::randn_like(got);
    const at::Tensor grad = torch::autograd::grad({(got * weight).sum()}, {x}).front();
    EXPECT_TRUE(at::equal(grad, at::zeros_like(x).index_add_(0, rows, weight))) << "no expert twice in a row";
  }
}

TEST(CombineOperator, UnusedSlotsDoNotTouchTheSum_CUDA) {
  MOECOD_NEEDS_CUDA();
  const auto nan = std::numeric_limits<float>::quiet_NaN();
  const at::Tensor experts = at::tensor({1, -1, 0, 1, -1, -1}, at::kInt).view({3, 2}).to(at::kCUDA);
  const Routing routing = Routing::given(experts, at::ones({3, 2}, on(at::kFloat)), 2);
  const Plan plan(routing);
  at::Tensor sorted = at::ones({3, 4}, on(at::kFloat));
  sorted[0].fill_(nan);  // row 1, slot 0
  const at::Tensor y = combine(sorted, routing.weights, plan);
  EXPECT_TRUE(at::equal(y[0], at::ones({4}, on(at::kFloat))));
  EXPECT_TRUE(y[1].isnan().all().item<bool>());
  EXPECT_TRUE(at::equal(y[2], at::zeros({4}, on(at::kFloat))));
}

TEST(CombineOperator, OnlyWhatIsNeededIsComputed_CUDA) {
  MOECOD_NEEDS_CUDA();
  torch::manual_seed(6);
  const Routing routing = draw(100, 6, 2, 0);
  const Plan plan(routing);
  for (bool learns : {false, true}) {
    const at::Tensor sorted = at::randn({200, 16}, on(at::kFloat)).set_requires_grad(learns);
    const at::Tensor w = routing.weights.detach().clone().set_requires_grad(!learns);
    combine(sorted, w, plan).square().sum().backward();
    EXPECT_EQ(sorted.grad().defined(), learns);
    EXPECT_EQ(w.grad().defined(), !learns);
  }
}

TEST(CombineOperator, RepeatsBitForBit_CUDA) {
  MOECOD_NEEDS_CUDA();
  torch::manual_seed(7);
  for (at::ScalarType type : {at::kFloat, at::kBFloat16}) {
    const Routing many = draw(20011, 16, 4, 0.1), images = draw(7, 4, 2, 0);
    const at::Tensor x = at::randn({20011, 96}, on(type)), big = at::randn({7, 64, 40, 40}, on(type));
    const Plan plan(many), plan_of_images(images);
    expect_repeats([&] { return through(x, many, plan, true, type); });
    expect_repeats([&] { return through(big, images, plan_of_images, true, type); });
  }
}

TEST(CombineOperator, CapturesInAGraph_CUDA) {
  MOECOD_NEEDS_CUDA();
  torch::manual_seed(8);
  at::Tensor logits = at::randn({3000, 8}, on(at::kFloat));
  const at::Tensor x = at::randn({3000, 64}, on(at::kBFloat16));
  expect_captures(
      [&] {
        const Routing routing = select::TopK<2>::select(logits, {}, true);
        const Plan plan(routing);
        const at::Tensor rows = gather(x, plan);
        auto [d_sorted, d_weights] = detail::combine_backward(x, rows, routing.weights, plan.order, plan.position, true,
                                                              true);
        return Tensors{combine(rows, routing.weights, plan), d_sorted, d_weights};
      },
      [&](int) { logits.normal_(); });
}

TEST(CombineOperator, Float64FallsBackAndIsCounted_CUDA) {
  MOECOD_NEEDS_CUDA();
  const Routing routing = draw(50, 6, 2, 0);
  const Plan plan(routing);
  const at::Tensor x = at::randn({50, 4}, on(at::kDouble)).set_requires_grad(true);
  const int64_t before = operators::fallbacks();
  const at::Tensor y = combine(gather(x, plan), routing.weights.to(at::kDouble), plan);
  y.sum().backward();
  EXPECT_EQ(operators::fallbacks(), before + 3) << "combine, its backward, gather's backward; gather copies any type";
  EXPECT_LE(relative_error(y, x * routing.weights.to(at::kDouble).sum(1, true)), 1e-12);
}

}  // namespace
}  // namespace moecod::on_cuda
