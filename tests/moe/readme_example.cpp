// The lines of the README, compiled and run; a test below compares them with the page.
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <sstream>
#include <string>

// [readme]
#include <moecod/moecod.hpp>
using namespace moecod;

using Camo = ModelLevel<backbone::PvtV2B2,
                        Mixture<router::Pyramid<>,
                                Distinct<expert::SINet, expert::PraNet, expert::ZoomNet, expert::Ujsc>,
                                select::TopK<2>, balance::LossFree, dispatch::Batched>>;
// [readme]
// [swap]
using Ablated = swap_t<Camo, balance::Switch>;
// [swap]

namespace {

std::string between_marks(const std::string& text, const std::string& mark) {
  const auto begin = text.find(mark + "\n") + mark.size() + 1;
  return text.substr(begin, text.find(mark, begin) - begin);
}

std::string read(const std::string& path) {
  const char* root = std::getenv("MOECOD_SOURCE_DIR");
  std::ifstream file(std::string(root == nullptr ? "." : root) + "/" + path);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

TEST(Readme, ShowsTheseLines) {
  const std::string page = read("README.md"), source = read("tests/moe/readme_example.cpp");
  ASSERT_FALSE(page.empty());
  for (const char* mark : {"// [readme]", "// [swap]"})
    EXPECT_NE(page.find(between_marks(source, mark)), std::string::npos) << mark;
}

TEST(Readme, ItsModelAnswers) {
  Camo model;
  model.eval();
  const at::NoGradGuard no_grad;
  const at::Tensor images = at::randn({1, 3, 64, 64});
  auto out = model(images, WithRouting{});
  EXPECT_EQ(out.logits.sizes(), (std::vector<int64_t>{1, 1, 64, 64}));
  EXPECT_EQ(out.top_k_indices.sizes(), (std::vector<int64_t>{1, 2}));
  Ablated::mixture_type::balance_type policy;
  EXPECT_TRUE(has_auxiliary_loss<decltype(policy)>);
}

}  // namespace
