// moecod::plan against LibTorch's stable sort, bit for bit.
#include "moecod/moe/routing.hpp"

#include "moecod/moe/select/top_k.hpp"
#include "tests/cuda/on_cuda.hpp"

namespace moecod::on_cuda {
namespace {

void compare(const at::Tensor& experts, int64_t num_experts, int64_t assignments) {
  SCOPED_TRACE(::testing::Message() << "N " << experts.size(0) << " S " << experts.size(1) << " E " << num_experts);
  // Not by count_assignments, which holds an [N*S, E] matrix.
  const at::Tensor counts = at::bincount(experts.flatten().add(1), {}, num_experts + 1).slice(0, 1);
  const auto [order, offsets, position] =
      operators::find<operators::Plan>()->call(experts, num_experts, assignments);
  const auto [want_order, want_offsets, want_position] = detail::plan(experts, counts, assignments);
  ASSERT_TRUE(at::equal(offsets, want_offsets));
  ASSERT_TRUE(at::equal(position, want_position));
  ASSERT_TRUE(at::equal(order, want_order));
}

/// [N, S] experts, of which about a share is unused.
at::Tensor draw(int64_t rows, int64_t slots, int64_t num_experts, double unused) {
  const at::Tensor experts = at::randint(0, num_experts, {rows, slots}, on(at::kInt));
  return unused > 0 ? experts.masked_fill(at::rand({rows, slots}, on(at::kFloat)).lt(unused), -1) : experts;
}

int64_t used(const at::Tensor& experts) { return experts.ge(0).sum().item<int64_t>(); }

TEST(PlanOperator, EqualsLibTorchForAllSizes_CUDA) {
  MOECOD_NEEDS_CUDA();
  torch::manual_seed(1);
  for (int64_t num_experts : {1, 2, 6, 8, 9, 32, 33, 64, 65, 100, 256})
    for (int64_t slots : {1, 2, 8})
      for (int64_t rows : {1, 3, 33, 1000, 9001, 65537}) {
        const at::Tensor full = draw(rows, slots, num_experts, 0);
        compare(full, num_experts, full.numel());
        const at::Tensor some = draw(rows, slots, num_experts, 0.4);
        compare(some, num_experts, used(some));
      }
}

TEST(PlanOperator, Millions_CUDA) {
  MOECOD_NEEDS_CUDA();
  torch::manual_seed(2);
  for (int64_t num_experts : {6, 64, 256})
    for (int64_t slots : {2, 8}) {
      const at::Tensor full = draw(1000003, slots, num_experts, 0);
      compare(full, num_experts, full.numel());
      const at::Tensor one = at::full_like(full, num_experts - 1);
      compare(one, num_experts, one.numel());
      const at::Tensor squared = at::rand(full.sizes(), on(at::kFloat)).pow(4).mul(num_experts - 1).to(at::kInt);
      compare(squared, num_experts, squared.numel());
    }
}

TEST(PlanOperator, NoRowsAndNoUsedSlots_CUDA) {
  MOECOD_NEEDS_CUDA();
  compare(at::empty({0, 2}, on(at::kInt)), 6, 0);
  compare(at::full({70, 3}, -1, on(at::kInt)), 6, 0);
  compare(at::full({70000, 3}, -1, on(at::kInt)), 6, 0);
}

TEST(PlanOperator, AWrongNumberOfAssignmentsWritesNothingOutside_CUDA) {
  MOECOD_NEEDS_CUDA();
  const at::Tensor experts = draw(20000, 2, 6, 0);
  const auto [order, offsets, position] = operators::find<operators::Plan>()->call(experts, 6, 10);
  const auto [all, all_offsets, all_position] = operators::find<operators::Plan>()->call(experts, 6, 40000);
  EXPECT_TRUE(at::equal(order, all.slice(0, 0, 10)));
}

TEST(PlanOperator, ThePlanOfARoutingUsesIt_CUDA) {
  MOECOD_NEEDS_CUDA();
  const Routing routing = select::TopK<2>::select(at::randn({5000, 6}, on(at::kFloat)), {}, true);
  const Plan plan(routing);
  const auto [order, offsets, position] = detail::plan(routing.experts, routing.counts, routing.assignments);
  EXPECT_TRUE(at::equal(plan.order, order));
  EXPECT_TRUE(at::equal(plan.offsets, offsets));
  EXPECT_TRUE(at::equal(plan.position, position));
}

TEST(PlanOperator, RepeatsBitForBit_CUDA) {
  MOECOD_NEEDS_CUDA();
  torch::manual_seed(3);
  const at::Tensor experts = draw(300007, 2, 100, 0.1);
  const int64_t assignments = used(experts);
  expect_repeats([&] {
    const auto [order, offsets, position] = operators::find<operators::Plan>()->call(experts, 100, assignments);
    return Tensors{order, offsets, position};
  });
}

TEST(PlanOperator, CapturesInAGraph_CUDA) {
  MOECOD_NEEDS_CUDA();
  torch::manual_seed(4);
  for (int64_t rows : {500, 50000}) {
    at::Tensor experts = draw(rows, 2, 6, 0);
    expect_captures(
        [&] {
          const auto [order, offsets, position] = operators::find<operators::Plan>()->call(experts, 6, rows * 2);
          return Tensors{order, offsets, position};
        },
        [&](int replay) { replay == 2 ? experts.fill_(3) : experts.random_(0, 6); });
  }
}

TEST(PlanOperator, ManyExpertsFallBackAndAreCounted_CUDA) {
  MOECOD_NEEDS_CUDA();
  const int64_t before = operators::fallbacks();
  const at::Tensor experts = draw(1000, 2, 300, 0);
  compare(experts, 300, experts.numel());
  EXPECT_EQ(operators::fallbacks(), before + 1);
}

}  // namespace
}  // namespace moecod::on_cuda
