#pragma once
#include "moecod/expert/conv.hpp"
#include "moecod/expert/mlp.hpp"
#include "moecod/moe/dispatch/batched.hpp"
#include "moecod/moe/dispatch/sequential.hpp"
#include "moecod/moe/experts/replicated.hpp"
#include "tests/laws/support.hpp"

namespace moecod::laws {

/// Whether experts with batch statistics see, in training, exactly the rows routed to them, together. Specialise it
/// as false for a dispatcher that shows them one row at a time or all rows.
template <class Dispatch>
inline constexpr bool batch_statistics = !Dispatch::position_weights;
template <>
inline constexpr bool batch_statistics<dispatch::Sequential> = false;

struct IdentityOptions {};

/// Returns its input. No parameters.
template <class Layers = layers::Single>
struct Identity : torch::nn::Module {
  using rows = rows::Images;
  template <class L>
  using rebind = Identity<L>;
  using Options = IdentityOptions;
  explicit Identity(const Options& = {}, Layers = {}) {}
  at::Tensor forward(const at::Tensor& x, const typename Layers::Group& = {}) { return x; }
};

/// The convolutional expert as a module of its own kind, which Replicated stores N times instead of stacked.
struct PlainConv : expert::Conv<> {
  using rebind = void;
  using expert::Conv<>::Conv;
};

/// What a dispatcher must do: run each chosen expert on each row and sum the outputs by weight, like Sequential.
template <class Dispatch>
struct DispatchLaws : ::testing::Test {
  static constexpr int64_t experts = 4, rows = 9, channels = 6, idle = 2;
  template <class Expert>
  using Store = Replicated<Expert, experts>;

  static at::Tensor images(at::Device device) { return normal({rows, channels, 5, 5}, 11, device); }
  static at::Tensor vectors(at::Device device) { return normal({rows, channels}, 12, device); }

  /// Outputs, all gradients and all state of one forward and backward pass.
  template <class D, class Experts>
  static Named step(Experts& store, const at::Tensor& input, Routing routing) {
    const at::Tensor x = input.clone().set_requires_grad(true);
    routing.weights = routing.weights.detach().clone().set_requires_grad(true);
    store.zero_grad();
    const at::Tensor y = D::run(store, x, routing).y;
    (y * probe(y)).sum().backward();
    Named out{{"output", y.detach()}, {"input's gradient", x.grad()}, {"weights' gradient", routing.weights.grad()}};
    for (const auto& item : store.named_parameters()) out.emplace_back("gradient of " + item.key(), item.value().grad());
    for (const auto& item : store.named_buffers()) out.emplace_back(item.key(), item.value().clone());
    return out;
  }

  static void one_hot_weights_give_the_identity(at::Device device) {
    auto store = make<Store<Identity<>>>(device);
    Routing routing = sample_routing(rows, experts, 2, 21, -1, device);
    const at::Tensor one = at::zeros_like(routing.weights);
    one.select(1, 0).slice(0, 0, 5).fill_(1);
    one.select(1, 1).slice(0, 5).fill_(1);
    routing.weights = one;
    EXPECT_TRUE(same(Dispatch::run(*store, images(device), routing).y, images(device)));
  }

  template <class Expert>
  static void equals_sequential(at::Device device, const at::Tensor& x, bool training) {
    auto mine = make<Store<Expert>>(device, typename Expert::Options{channels});
    auto reference = make<Store<Expert>>(device, typename Expert::Options{channels});
    mine->train(training);
    reference->train(training);
    const Routing routing = sample_routing(rows, experts, 2, 22, idle, device);
    expect_equal(step<Dispatch>(*mine, x, routing), step<dispatch::Sequential>(*reference, x, routing), 1e-10);
  }

  static void equals_sequential_in_evaluation(at::Device device) {
    equals_sequential<expert::Conv<>>(device, images(device), false);
    if constexpr (!Dispatch::needs_stacked) equals_sequential<PlainConv>(device, images(device), false);
  }

  static void equals_sequential_in_training_without_batch_statistics(at::Device device) {
    equals_sequential<expert::Mlp<>>(device, vectors(device), true);
  }

  static void equals_batched_in_training(at::Device device) {
    if constexpr (batch_statistics<Dispatch>) {
      auto mine = make<Store<expert::Conv<>>>(device, expert::ConvOptions{channels});
      auto reference = make<Store<expert::Conv<>>>(device, expert::ConvOptions{channels});
      for (uint64_t pass = 0; pass < 2; ++pass) {
        const Routing routing = sample_routing(rows, experts, 2, 23 + pass, pass ? -1 : idle, device);
        expect_equal(step<Dispatch>(*mine, images(device), routing),
                     step<dispatch::Batched>(*reference, images(device), routing), 1e-10);
      }
    } else {
      GTEST_SKIP() << "batch statistics are not over an expert's own rows under this dispatcher";
    }
  }

  static void permuting_the_experts_permutes_indices_only(at::Device device) {
    auto store = make<Store<expert::Conv<>>>(device, expert::ConvOptions{channels});
    auto permuted = make<Store<expert::Conv<>>>(device, expert::ConvOptions{channels});
    const std::vector<int64_t> to{2, 0, 3, 1};
    const StateDict from = state_dict(*store);
    StateDict target = state_dict(*permuted);
    const std::size_t each = from.size() / experts;
    torch::NoGradGuard no_grad;
    for (int64_t e = 0; e < experts; ++e)
      for (std::size_t i = 0; i < each; ++i) target[to[e] * each + i].second.copy_(from[e * each + i].second);
    const Routing routing = sample_routing(rows, experts, 2, 25, idle, device);
    const at::Tensor map = at::tensor(to, at::kLong).to(device);
    const Routing moved =
        Routing::given(map.index_select(0, routing.experts.to(at::kLong).flatten()).view_as(routing.experts),
                       routing.weights, experts);
    EXPECT_TRUE(close(Dispatch::run(*permuted, images(device), moved).y,
                      Dispatch::run(*store, images(device), routing).y, 1e-12));
    EXPECT_EQ(moved.counts[to[idle]].template item<int64_t>(), 0);
  }

  template <class Expert>
  static void idle_expert(at::Device device) {
    auto store = make<Store<Expert>>(device, expert::ConvOptions{channels});
    const Named before = snapshot(*store);
    const std::size_t each = before.size() / experts;
    step<Dispatch>(*store, images(device), sample_routing(rows, experts, 2, 26, idle, device));
    for (const auto& item : store->named_parameters()) {
      if (!Store<Expert>::stacked && !item.key().starts_with(std::to_string(idle) + ".")) continue;
      ASSERT_TRUE(item.value().grad().defined()) << item.key();
      const at::Tensor grad = Store<Expert>::stacked ? item.value().grad().select(0, idle) : item.value().grad();
      EXPECT_EQ(grad.abs().max().template item<double>(), 0.0) << item.key();
    }
    if (Dispatch::position_weights) return;  // such a dispatcher shows every row to every expert
    const Named after = snapshot(*store);
    expect_equal({after.begin() + idle * each, after.begin() + (idle + 1) * each},
                 {before.begin() + idle * each, before.begin() + (idle + 1) * each}, 0);
  }

  static void idle_experts_get_zero_gradients_and_keep_their_statistics(at::Device device) {
    idle_expert<expert::Conv<>>(device);
    if constexpr (!Dispatch::needs_stacked) idle_expert<PlainConv>(device);
  }

  static void unused_slots_count_for_nothing(at::Device device) {
    auto store = make<Store<expert::Mlp<>>>(device, expert::MlpOptions{channels});
    const at::Tensor x = vectors(device).slice(0, 0, 3);
    const at::Tensor chosen = at::tensor({0, -1, -1, -1, -1, 3}, at::kInt).view({3, 2}).to(device);
    const at::Tensor weights = at::tensor({0.5, 9.0, 9.0, 9.0, NAN, 2.0}, at::kDouble).view({3, 2}).to(device);
    const at::Tensor y = Dispatch::run(*store, x, Routing::given(chosen, weights, experts)).y;
    const auto alone = [&](int64_t e) {
      return Dispatch::run(*store, x, Routing::to(e, 3, experts, device)).y;
    };
    EXPECT_TRUE(close(y[0], 0.5 * alone(0)[0], 1e-12));
    EXPECT_EQ(y[1].abs().max().template item<double>(), 0.0);
    EXPECT_TRUE(close(y[2], 2.0 * alone(3)[2], 1e-12));
  }

  static void parts_hold_each_experts_share(at::Device device) {
    auto store = make<Store<expert::Mlp<>>>(device, expert::MlpOptions{channels});
    const Routing routing = sample_routing(rows, experts, 2, 27, idle, device);
    const auto out = Dispatch::run(*store, vectors(device), routing);
    const at::Tensor weighted = out.parts.output * out.parts.weights().unsqueeze(1);
    EXPECT_TRUE(close(at::zeros_like(out.y).index_add(0, out.parts.rows(), weighted), out.y, 1e-12));
  }

  static void recomputation_changes_nothing(at::Device device) {
    auto plain = make<Store<expert::Conv<>>>(device, expert::ConvOptions{channels});
    auto recomputed = make<Store<expert::Conv<>>>(device, expert::ConvOptions{channels});
    recomputed->recompute = true;
    const Routing routing = sample_routing(rows, experts, 2, 28, idle, device);
    expect_equal(step<Dispatch>(*recomputed, images(device), routing), step<Dispatch>(*plain, images(device), routing),
                 device.is_cuda() ? 1e-12 : 0);
  }

  static void repeats_bitwise(at::Device device) {
    Named first;
    for (int pass = 0; pass < 2; ++pass) {
      auto store = make<Store<expert::Mlp<>>>(device, expert::MlpOptions{channels});
      const Named now = step<Dispatch>(*store, vectors(device), sample_routing(rows, experts, 2, 29, -1, device));
      if (pass) expect_equal(now, first, 0);
      first = now;
    }
  }
};

TYPED_TEST_SUITE_P(DispatchLaws);

#define MOECOD_DISPATCH_LAW(Name, name)                                    \
  TYPED_TEST_P(DispatchLaws, Name) { TestFixture::name(at::kCPU); }        \
  TYPED_TEST_P(DispatchLaws, Name##_CUDA) {                                \
    MOECOD_SKIP_WITHOUT_CUDA();                                            \
    TestFixture::name(at::kCUDA);                                          \
  }
MOECOD_DISPATCH_LAW(OneHotWeightsGiveTheIdentity, one_hot_weights_give_the_identity)
MOECOD_DISPATCH_LAW(EqualsSequentialInEvaluation, equals_sequential_in_evaluation)
MOECOD_DISPATCH_LAW(EqualsSequentialInTrainingWithoutBatchStatistics,
                    equals_sequential_in_training_without_batch_statistics)
MOECOD_DISPATCH_LAW(EqualsBatchedInTraining, equals_batched_in_training)
MOECOD_DISPATCH_LAW(PermutingTheExpertsPermutesIndicesOnly, permuting_the_experts_permutes_indices_only)
MOECOD_DISPATCH_LAW(IdleExpertsGetZeroGradientsAndKeepTheirStatistics,
                    idle_experts_get_zero_gradients_and_keep_their_statistics)
MOECOD_DISPATCH_LAW(UnusedSlotsCountForNothing, unused_slots_count_for_nothing)
MOECOD_DISPATCH_LAW(PartsHoldEachExpertsShare, parts_hold_each_experts_share)
MOECOD_DISPATCH_LAW(RecomputationChangesNothing, recomputation_changes_nothing)
MOECOD_DISPATCH_LAW(RepeatsBitwise, repeats_bitwise)
#undef MOECOD_DISPATCH_LAW

REGISTER_TYPED_TEST_SUITE_P(
    DispatchLaws, OneHotWeightsGiveTheIdentity, OneHotWeightsGiveTheIdentity_CUDA, EqualsSequentialInEvaluation,
    EqualsSequentialInEvaluation_CUDA, EqualsSequentialInTrainingWithoutBatchStatistics,
    EqualsSequentialInTrainingWithoutBatchStatistics_CUDA, EqualsBatchedInTraining, EqualsBatchedInTraining_CUDA,
    PermutingTheExpertsPermutesIndicesOnly, PermutingTheExpertsPermutesIndicesOnly_CUDA,
    IdleExpertsGetZeroGradientsAndKeepTheirStatistics, IdleExpertsGetZeroGradientsAndKeepTheirStatistics_CUDA,
    UnusedSlotsCountForNothing, UnusedSlotsCountForNothing_CUDA, PartsHoldEachExpertsShare,
    PartsHoldEachExpertsShare_CUDA, RecomputationChangesNothing, RecomputationChangesNothing_CUDA, RepeatsBitwise,
    RepeatsBitwise_CUDA);

}  // namespace moecod::laws
