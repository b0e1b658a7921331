#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <utility>

#include "moecod/data/sample.hpp"

namespace moecod::data {

/// Any source behind one type, for programs that choose theirs at run time.
class AnySource {
 public:
  template <source S>
  explicit AnySource(S made) : size_(made.size()) {
    auto shared = std::make_shared<const S>(std::move(made));
    sample_ = [shared](int64_t epoch, int64_t index) { return shared->sample(epoch, index); };
  }

  int64_t size() const { return size_; }
  Sample sample(int64_t epoch, int64_t index) const { return sample_(epoch, index); }

 private:
  int64_t size_;
  std::function<Sample(int64_t, int64_t)> sample_;
};

static_assert(source<AnySource>);

}  // namespace moecod::data
