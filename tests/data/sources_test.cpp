// Held-out parts of a training set, and sources behind one type.
#include <gtest/gtest.h>

#include <set>
#include <stdexcept>
#include <string>

#include "moecod/data/any_source.hpp"
#include "moecod/data/hold_out.hpp"

namespace {

using namespace moecod;

data::Records numbered(int count) {
  data::Records records{"folders", {}, {"one problem"}};
  for (int i = 0; i < count; ++i) records.records.push_back({"picture" + std::to_string(100 + i), "image", "mask", -1});
  return records;
}

std::set<std::string> names(const data::Records& records) {
  std::set<std::string> out;
  for (const auto& record : records.records) out.insert(record.name);
  return out;
}

TEST(HoldOut, PartsAreDisjointCompleteAndRepeat) {
  const data::Records all = numbered(40);
  const auto [train, validation] = data::hold_out(all, 0.1, 3);
  EXPECT_EQ(validation.records.size(), 4U);
  EXPECT_EQ(train.records.size(), 36U);
  std::set<std::string> both = names(train);
  both.merge(names(validation));
  EXPECT_EQ(both, names(all));
  EXPECT_EQ(train.problems, all.problems);
  EXPECT_EQ(names(data::hold_out(all, 0.1, 3).second), names(validation));
  EXPECT_NE(names(data::hold_out(all, 0.1, 4).second), names(validation));
}

TEST(HoldOut, KeepsAtLeastOneOnEitherSideAndRefusesLess) {
  EXPECT_EQ(data::hold_out(numbered(3), 0.01).second.records.size(), 1U);
  EXPECT_EQ(data::hold_out(numbered(3), 0.99).first.records.size(), 1U);
  EXPECT_THROW(data::hold_out(numbered(1), 0.5), std::invalid_argument);
  EXPECT_THROW(data::hold_out(numbered(9), 0.0), std::invalid_argument);
}

struct Counted {
  int64_t size() const { return 7; }
  data::Sample sample(int64_t epoch, int64_t index) const {
    data::Sample out;
    out.name = std::to_string(epoch) + "/" + std::to_string(index);
    return out;
  }
};

TEST(AnySource, GivesWhatItsSourceGives) {
  const data::AnySource source{Counted()};
  const data::AnySource copy = source;
  EXPECT_EQ(copy.size(), 7);
  EXPECT_EQ(copy.sample(2, 5).name, "2/5");
}

}  // namespace
