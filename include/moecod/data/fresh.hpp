#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>

#include "moecod/data/generator.hpp"
#include "moecod/data/sample.hpp"

namespace moecod::data {

/// A source of pictures made while training: `size` new ones every epoch, none ever twice. The pictures of epoch e
/// are those with the generator's indices e * size .. (e + 1) * size - 1. It sees the photographs that its generator
/// was given and no others, so give it the training part of a PhotographSplit.
/// Errors: std::invalid_argument for a size that is not positive; std::out_of_range for an index outside the epoch.
class Fresh {
 public:
  Fresh(Generator generator, int64_t size) : generator_(std::move(generator)), size_(size) {
    if (size <= 0) throw std::invalid_argument("Fresh: size must be positive, got " + std::to_string(size));
  }

  int64_t size() const { return size_; }
  const Generator& generator() const { return generator_; }

  Sample sample(int64_t epoch, int64_t index) const {
    if (epoch < 0 || index < 0 || index >= size_) {
      throw std::out_of_range("Fresh: expected epoch >= 0 and index in 0.." + std::to_string(size_ - 1) + ", got " +
                              std::to_string(epoch) + " and " + std::to_string(index));
    }
    const uint64_t serial = static_cast<uint64_t>(epoch) * static_cast<uint64_t>(size_) + static_cast<uint64_t>(index);
    Camouflage made = generator_(serial);
    return {std::move(made.image), std::move(made.mask), static_cast<int64_t>(made.regime),
            "fresh-" + std::to_string(serial)};
  }

 private:
  Generator generator_;
  int64_t size_;
};

static_assert(source<Fresh>);

}  // namespace moecod::data
