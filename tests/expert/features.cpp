// The small experts of the feature level.
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <memory>
#include <string>

#include "moecod/expert/contrast.hpp"
#include "moecod/expert/edge.hpp"
#include "moecod/expert/frequency.hpp"
#include "moecod/expert/texture.hpp"
#include "moecod/moe/balance/ema_bias.hpp"
#include "moecod/moe/dispatch/batched.hpp"
#include "moecod/moe/dispatch/grouped.hpp"
#include "moecod/moe/experts/distinct.hpp"
#include "moecod/moe/mixture.hpp"
#include "moecod/moe/router/global_pool.hpp"
#include "moecod/moe/select/top_k.hpp"
#include "tests/error_of.hpp"
#include "tests/laws/expert_laws.hpp"

namespace moecod::laws {

using FeatureExperts = ::testing::Types<expert::Texture<>, expert::Frequency<>, expert::Edge<>, expert::Contrast<>>;
INSTANTIATE_TYPED_TEST_SUITE_P(Features, ExpertLaws, FeatureExperts);

}  // namespace moecod::laws

namespace {

using namespace moecod;

template <class Expert>
struct FeatureExpertsOnMaps : ::testing::Test {};
using All = ::testing::Types<expert::Texture<>, expert::Frequency<>, expert::Edge<>, expert::Contrast<>>;
TYPED_TEST_SUITE(FeatureExpertsOnMaps, All);

TYPED_TEST(FeatureExpertsOnMaps, KeepTheShapeOfMapsOfAnySize) {
  TypeParam expert({.channels = 12});
  for (const auto& [height, width] : {std::pair<int64_t, int64_t>{1, 1}, {2, 5}, {14, 14}}) {
    const at::Tensor x = at::randn({2, 12, height, width});
    EXPECT_EQ(expert.forward(x).sizes(), x.sizes());
  }
}

TYPED_TEST(FeatureExpertsOnMaps, RefuseAWidthThatIsNoMultipleOfFour) {
  EXPECT_NE(test::error_of([] { TypeParam({.channels = 10}); }).find("multiple of 4, got 10"), std::string::npos);
}

TYPED_TEST(FeatureExpertsOnMaps, GroupedEqualsBatchedInTraining) {
  using Experts = Replicated<TypeParam, 3>;
  const auto make = [] { return laws::make<Experts>(at::kCPU, typename Experts::Options{.channels = 8}); };
  const Routing routing = laws::sample_routing(7, 3, 2, 5);
  const at::Tensor x = laws::normal({7, 8, 5, 5}, 3);
  auto a = make(), b = make();
  const at::Tensor y = dispatch::Batched::run(*a, x, routing).y, z = dispatch::Grouped::run(*b, x, routing).y;
  EXPECT_TRUE(laws::close(y, z, 1e-10));
  (y * laws::probe(y)).sum().backward();
  (z * laws::probe(z)).sum().backward();
  laws::expect_equal(laws::snapshot(*a), laws::snapshot(*b), 1e-10);
  const auto p = a->parameters(), q = b->parameters();
  for (std::size_t i = 0; i < p.size(); ++i) EXPECT_TRUE(laws::close(p[i].grad(), q[i].grad(), 1e-10)) << i;
}

/// x through the convolution `name` of an expert.
at::Tensor convolved(torch::nn::Module& expert, const std::string& name, const at::Tensor& x) {
  return expert.named_children()[name]->as<layers::Conv2d<>>()->forward(x);
}

TEST(FeatureEdge, DerivativesAnswerToTheirDirectionOnly) {
  expert::Edge<> expert({.channels = 4});
  const at::Tensor ramp = at::arange(8, at::kFloat);
  const at::Tensor down = ramp.view({1, 1, 8, 1}).expand({1, 4, 8, 8}), across = ramp.view({1, 1, 1, 8}).expand({1, 4, 8, 8});
  const auto inside = [](const at::Tensor& y) { return y.slice(2, 1, 7).slice(3, 1, 7); };
  const at::NoGradGuard no_grad;
  EXPECT_TRUE(at::allclose(inside(convolved(expert, "rows", down)), at::ones({1, 4, 6, 6})));
  EXPECT_TRUE(at::allclose(inside(convolved(expert, "rows", across)), at::zeros({1, 4, 6, 6})));
  EXPECT_TRUE(at::allclose(inside(convolved(expert, "columns", across)), at::ones({1, 4, 6, 6})));
  EXPECT_TRUE(at::allclose(inside(convolved(expert, "columns", down)), at::zeros({1, 4, 6, 6})));
  EXPECT_TRUE(at::allclose(inside(convolved(expert, "curvature", down)), at::zeros({1, 4, 6, 6}), 0, 1e-6));
}

TEST(FeatureFrequency, OfAConstantOnlyTheCoarseBandIsLeft) {
  // Weights of the fine and the middle band then have no gradient, at the border too.
  expert::Frequency<> expert({.channels = 8});
  expert.eval();
  (expert.forward(at::full({1, 8, 9, 9}, 0.7)) * laws::probe(at::zeros({1, 8, 9, 9}))).sum().backward();
  const auto p = expert.named_parameters();
  for (const char* band : {"fine", "middle"})
    EXPECT_LT(p[std::string(band) + ".conv.weight"].grad().abs().max().item<float>(), 1e-4f) << band;
  EXPECT_GT(p["coarse.conv.weight"].grad().abs().max().item<float>(), 1e-3f);
}

TEST(FeatureMixture, SixDistinctExpertsMakeABlock) {
  using Block = Mixture<router::GlobalPool,
                        Distinct<expert::Texture<>, expert::Frequency<>, expert::Edge<>, expert::Contrast<>,
                                 expert::Texture<>, expert::Frequency<>>,
                        select::TopK<2>, balance::EmaBias, dispatch::Batched>;
  Block::Options options;
  options.router.channels = 16;
  std::apply([](auto&... each) { ((each.channels = 16), ...); }, options.experts.each);
  torch::manual_seed(1);
  Block block(options);
  const at::Tensor x = at::randn({4, 16, 6, 6});
  const auto out = block.forward(x);
  EXPECT_EQ(out.y.sizes(), x.sizes());
  EXPECT_EQ(out.routing.experts.sizes(), (std::vector<int64_t>{4, 2}));
  out.y.square().sum().backward();
  for (const auto& item : block.named_parameters()) EXPECT_TRUE(item.value().grad().defined()) << item.key();
}

}  // namespace
