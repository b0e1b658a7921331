// The worked examples of docs/contracts.md: one own policy of each kind, held against the laws. The marked parts appear
// in that page word for word (the last test compares).
#include <fstream>
#include <sstream>

#include "moecod/moe/mixture.hpp"
#include "tests/laws/balance_laws.hpp"
#include "tests/laws/dispatch_laws.hpp"
#include "tests/laws/expert_laws.hpp"
#include "tests/laws/router_laws.hpp"
#include "tests/laws/select_laws.hpp"

// [router]
#include <ATen/ops/matmul.h>
#include <ATen/ops/rand.h>

#include "moecod/moe/kind.hpp"
#include "moecod/moe/rows.hpp"

/// Routes an image by the largest response of each channel: logits = limit * tanh(max_{h,w}(x) W).
class MaxPoolRouter : public torch::nn::Module {
 public:
  using policy_kind = moecod::kind::router;
  using granularity = moecod::rows::Images;
  struct Options {
    int64_t experts = 1;   // set by the mixture
    int64_t channels = 1;  // set by the model
    double limit = 10.0;   // logits, > 0
  };

  explicit MaxPoolRouter(const Options& options) : limit_(options.limit) {
    weight_ = register_parameter("weight", at::rand({options.channels, options.experts}) - 0.5);
  }

  at::Tensor forward(const at::Tensor& x) {  // [B, C, H, W] -> [B, E]
    return at::matmul(x.flatten(2).amax(-1), weight_).tanh() * limit_;
  }

 private:
  at::Tensor weight_;
  double limit_;
};
// [end]

// [expert]
#include "moecod/layers/conv.hpp"
#include "moecod/layers/norm.hpp"

struct ResidualOptions {  // outside the template, so that it is one type for every Layers
  int64_t channels = 64;
};

/// y = x + relu(norm(conv1x1(x))).
template <class Layers = moecod::layers::Single>
class Residual : public torch::nn::Module {
 public:
  using rows = moecod::rows::Images;
  template <class L>
  using rebind = Residual<L>;
  using Options = ResidualOptions;

  explicit Residual(const Options& options = {}, Layers layers = {}) {
    const auto conv = moecod::layers::Conv2dOptions::square(options.channels, options.channels, 1, 1, /*bias=*/false);
    conv_ = register_module("conv", std::make_shared<moecod::layers::Conv2d<Layers>>(conv, layers));
    norm_ = register_module("norm", std::make_shared<moecod::layers::BatchNorm2d<Layers>>(options.channels, layers));
  }

  at::Tensor forward(const at::Tensor& x, const typename Layers::Group& group = {}) {
    return x + norm_->forward(conv_->forward(x, group), group).relu();
  }

 private:
  std::shared_ptr<moecod::layers::Conv2d<Layers>> conv_;
  std::shared_ptr<moecod::layers::BatchNorm2d<Layers>> norm_;
};
// [end]

// [select]
#include <ATen/ops/softmax.h>
#include <ATen/ops/where.h>

#include "moecod/moe/select/top_k.hpp"

/// The best expert of each row, and the second only where it comes close: score2 >= Percent/100 * score1.
template <int64_t Percent>
struct NearTie {
  using policy_kind = moecod::kind::select;
  static int64_t assignments(int64_t rows, int64_t) { return rows * 2; }

  static moecod::Routing select(const at::Tensor& logits, const at::Tensor& selection_bias, bool training) {
    // Every slot stays used, since the number of used slots must be known without asking the device: a second expert
    // that is too far away keeps its slot with weight 0.
    moecod::Routing routing =
        moecod::select::TopK<2, moecod::gate::SoftmaxTopK>::select(logits, selection_bias, training);
    const at::Tensor best = routing.weights.amax(1, /*keepdim=*/true);
    // Not divided by their sum: a lone weight of 1 would leave the router without a gradient.
    routing.weights = at::where(routing.weights.ge(best * (Percent / 100.0)), routing.weights, 0.0);
    return routing;
  }
};
// [end]

// [balance]
#include "moecod/moe/balance/state.hpp"

/// A selection bias that follows the share of the load in proportion: bias <- bias - rate * (share - 1/E).
class Proportional : public moecod::balance::Counting {
 public:
  using policy_kind = moecod::kind::balance;
  struct Options {
    int64_t experts = 1;  // set by the mixture
    double rate = 0.01;   // score per window and unit of excess share, >= 0
    int64_t window = 1;   // optimizer steps per update
  };

  explicit Proportional(const Options& options) : Counting(options.experts, options.window), rate_(options.rate) {
    bias_ = register_buffer("bias", at::zeros({options.experts}, at::kFloat));
  }

  at::Tensor selection_bias() const { return bias_; }

  void update(const at::Tensor& counts) override {
    torch::NoGradGuard no_grad;
    const at::Tensor total = counts.sum();
    const at::Tensor excess = counts.to(at::kFloat) / total.clamp_min(1) - 1.0 / double(counts.size(0));
    bias_.sub_(excess * total.gt(0) * rate_);  // in place; nothing at all for zero counts
  }

 private:
  at::Tensor bias_;
  double rate_;
};
// [end]

// [dispatch]
#include "moecod/moe/dispatch/execute.hpp"

/// Like Batched, but never more than Rows rows at a time: bounds the memory of the experts' activations.
template <int64_t Rows>
struct Chunked {
  using policy_kind = moecod::kind::dispatch;
  static constexpr bool needs_stacked = false;
  static constexpr bool position_weights = false;

  template <class Experts, class X>
  static auto run(Experts& experts, const X& x, const moecod::Routing& routing) {
    return moecod::dispatch::execute(experts, x, routing, [](auto& run_expert, const auto& rows) {
      std::vector<std::remove_cvref_t<decltype(run_expert(rows))>> out;
      for (int64_t begin = 0, n = moecod::tree::rows(rows); begin < n; begin += Rows)
        out.push_back(run_expert(moecod::tree::map(
            [&](const at::Tensor& leaf) { return leaf.slice(0, begin, std::min(begin + Rows, n)); }, rows)));
      return moecod::tree::cat(out);
    });
  }
};
// [end]

// [laws]
// The dispatcher shows an expert its rows in several portions, so batch statistics differ from Batched by design.
template <int64_t Rows>
inline constexpr bool moecod::laws::batch_statistics<Chunked<Rows>> = false;

using namespace moecod::laws;
INSTANTIATE_TYPED_TEST_SUITE_P(Mine, RouterLaws, MaxPoolRouter);
INSTANTIATE_TYPED_TEST_SUITE_P(Mine, ExpertLaws, Residual<>);
INSTANTIATE_TYPED_TEST_SUITE_P(Mine, SelectLaws, NearTie<80>);
INSTANTIATE_TYPED_TEST_SUITE_P(Mine, BalanceLaws, Proportional);
INSTANTIATE_TYPED_TEST_SUITE_P(Mine, DispatchLaws, Chunked<2>);
// [end]

namespace {

TEST(Contracts, OwnPoliciesMakeAMixture) {
  // [mixture]
  using Mine = moecod::Mixture<MaxPoolRouter, moecod::Replicated<Residual<>, 6>, NearTie<80>, Proportional, Chunked<8>>;
  Mine::Options options;
  options.router.channels = options.experts.channels = 32;
  Mine mixture(options);
  const at::Tensor y = mixture.forward(at::rand({4, 32, 11, 11})).y;  // [4, 32, 11, 11]
  // [end]
  EXPECT_EQ(y.sizes(), at::IntArrayRef({4, 32, 11, 11}));
  EXPECT_EQ(mixture.balance->counts.sum().item<int64_t>(), 8);
}

std::string text_of(const std::string& path) {
  std::ifstream file(path);
  std::stringstream out;
  out << file.rdbuf();
  return out.str();
}

TEST(Contracts, ThePageShowsThisFile) {
  const char* root = std::getenv("MOECOD_SOURCE_DIR");
  if (root == nullptr) GTEST_SKIP() << "set MOECOD_SOURCE_DIR to the source folder";
  const std::string page = text_of(std::string(root) + "/docs/contracts.md");
  std::istringstream source(text_of(std::string(root) + "/tests/moe/contracts_example.cpp"));
  ASSERT_FALSE(page.empty());
  std::string line, part, name;
  int parts = 0;
  while (std::getline(source, line)) {
    const auto start = line.find_first_not_of(' ');
    const std::string bare = start == std::string::npos ? "" : line.substr(start);
    if (bare == "// [end]") {
      EXPECT_NE(page.find("```cpp\n" + part + "```"), std::string::npos) << "docs/contracts.md lacks [" << name << "]";
      name.clear();
      ++parts;
    } else if (bare.starts_with("// [")) {
      name = bare.substr(4, bare.find(']') - 4);
      part.clear();
    } else if (!name.empty()) {
      part += (name == "mixture" && line.starts_with("  ") ? line.substr(2) : line) + "\n";
    }
  }
  EXPECT_EQ(parts, 7);
}

}  // namespace
