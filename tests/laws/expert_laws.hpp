#pragma once
#include <filesystem>

#include "moecod/io/weights.hpp"
#include "moecod/moe/dispatch/batched.hpp"
#include "moecod/moe/experts/replicated.hpp"
#include "tests/laws/support.hpp"

namespace moecod::laws {

/// What an expert must do. The TypeParam is the expert itself, as in Conv<>; `Sample` makes its options and input.
template <class Expert>
struct ExpertLaws : ::testing::Test {
  static constexpr int64_t count = 3, rows = 6;
  using Store = Replicated<Expert, count>;

  static auto options() { return Sample<Expert>::options(); }
  static auto input(int64_t n = rows) { return Sample<Expert>::input(n); }
  static std::shared_ptr<Expert> expert() { return make<Expert>(at::kCPU, options()); }
  static std::shared_ptr<Store> store() { return make<Store>(at::kCPU, options()); }

  template <class In>
  static at::Tensor primary(Expert& expert, const In& x) {
    auto out = expert.forward(x);
    return tree::primary(out);
  }

  template <class In>
  static In slice(const In& x, int64_t begin, int64_t end) {
    return tree::map([&](const at::Tensor& leaf) { return leaf.slice(0, begin, end); }, x);
  }

  /// A path in the system's folder for temporary files, by the name of the running test.
  static std::filesystem::path file() {
    const auto* info = ::testing::UnitTest::GetInstance()->current_test_info();
    std::string name = std::string(info->test_suite_name()) + "_" + info->name();
    for (char& c : name)
      if (c == '/') c = '_';
    return std::filesystem::temp_directory_path() / ("moecod_" + name + ".safetensors");
  }
};

TYPED_TEST_SUITE_P(ExpertLaws);

TYPED_TEST_P(ExpertLaws, RowsAreIndependentInEvaluation) {
  auto expert = this->expert();
  expert->eval();
  const auto x = this->input();
  const at::Tensor all = this->primary(*expert, x);
  ASSERT_EQ(all.size(0), this->rows);
  for (int64_t n = 0; n < this->rows; ++n)
    EXPECT_TRUE(close(this->primary(*expert, this->slice(x, n, n + 1)), all.slice(0, n, n + 1), 1e-10)) << "row " << n;
}

TYPED_TEST_P(ExpertLaws, EveryParameterGetsAGradient) {
  auto expert = this->expert();
  const at::Tensor y = this->primary(*expert, this->input());
  (y * probe(y)).sum().backward();
  for (const auto& item : expert->named_parameters()) {
    ASSERT_TRUE(item.value().grad().defined()) << item.key();
    EXPECT_TRUE(item.value().grad().isfinite().all().template item<bool>()) << item.key();
  }
}

TYPED_TEST_P(ExpertLaws, StackedInitialisationEqualsSingleOnesBitwise) {
  torch::manual_seed(51);
  const typename TestFixture::Store store(this->options());
  torch::manual_seed(51);
  Named singles;
  for (int64_t e = 0; e < this->count; ++e) {
    const TypeParam one(this->options());
    for (const auto& [name, tensor] : snapshot(one)) singles.emplace_back(std::to_string(e) + "." + name, tensor);
  }
  expect_equal(snapshot(store), singles, 0);
}

TYPED_TEST_P(ExpertLaws, ExpertsMoveBetweenStackAndSingleThroughFiles) {
  auto store = this->store();
  const auto path = this->file();
  io::write_state(path, state_dict(*store));
  const int64_t chosen = 1;
  torch::manual_seed(99);
  TypeParam single(this->options());
  single.to(at::kDouble);
  io::load_state(single, io::read_state(path), {.prefix = "1.", .partial = true});
  single.eval();
  store->eval();
  const auto x = this->input();
  const at::Tensor from_store = dispatch::Batched::run(*store, x, Routing::to(chosen, this->rows, this->count)).y;
  EXPECT_TRUE(close(this->primary(single, x), from_store, 1e-12));

  StateDict alone;
  for (const auto& [name, tensor] : state_dict(single)) alone.emplace_back("2." + name, tensor);
  io::write_state(path, alone);
  io::load_state(*store, io::read_state(path), {.partial = true});
  const at::Tensor moved = dispatch::Batched::run(*store, x, Routing::to(2, this->rows, this->count)).y;
  EXPECT_TRUE(same(moved, from_store));
  std::filesystem::remove(path);
}

TYPED_TEST_P(ExpertLaws, ThreeInAStoreEqualThreeAlone) {
  auto store = this->store();
  const auto x = this->input();
  const Routing routing = Routing::given(at::tensor({0, 0, 1, 1, 2, 2}).view({6, 1}), at::ones({6, 1}, at::kDouble), 3);
  const at::Tensor y = dispatch::Batched::run(*store, x, routing).y;
  torch::manual_seed(7);  // that of make()
  for (int64_t e = 0; e < this->count; ++e) {
    TypeParam one(this->options());
    one.to(at::kDouble);
    EXPECT_TRUE(close(this->primary(one, this->slice(x, 2 * e, 2 * e + 2)), y.slice(0, 2 * e, 2 * e + 2), 1e-12));
  }
}

TYPED_TEST_P(ExpertLaws, RecomputationChangesNothing) {
  std::vector<Named> passes;
  for (const bool recompute : {false, true}) {
    auto store = this->store();
    store->recompute = recompute;
    auto x = tree::map([](const at::Tensor& leaf) { return leaf.clone().set_requires_grad(true); }, this->input());
    const at::Tensor y = dispatch::Batched::run(*store, x, sample_routing(this->rows, this->count, 2, 52)).y;
    (y * probe(y)).sum().backward();
    passes.push_back(snapshot(*store));
    passes.back().emplace_back("output", y.detach());
    for (const at::Tensor& leaf : tree::leaves(x)) passes.back().emplace_back("input's gradient", leaf.grad());
    for (const auto& item : store->named_parameters()) passes.back().emplace_back(item.key(), item.value().grad());
  }
  expect_equal(passes[1], passes[0], 0);
}

REGISTER_TYPED_TEST_SUITE_P(ExpertLaws, RowsAreIndependentInEvaluation, EveryParameterGetsAGradient,
                            StackedInitialisationEqualsSingleOnesBitwise, ExpertsMoveBetweenStackAndSingleThroughFiles,
                            ThreeInAStoreEqualThreeAlone, RecomputationChangesNothing);

}  // namespace moecod::laws
