#pragma once

#include <array>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>

#include "moecod/io/image.hpp"

namespace moecod::data {

/// What makes the object of a picture hard to see. The order is the label's value.
enum class Regime : int64_t {
  Cluttered = 0,   // look-alikes with edges of their own surround the object
  Clear = 1,       // the object is separable by colour and texture
  MultiScale = 2,  // one or several objects, from very small to very large
  Ambiguous = 3,   // a soft boundary in which object and surroundings mix
};

inline constexpr std::array<std::string_view, 4> kRegimeNames{"Cluttered", "Clear", "MultiScale", "Ambiguous"};

/// The regime's value for its name, or -1 for any other word.
constexpr int64_t regime_of(std::string_view name) {
  for (std::size_t i = 0; i < kRegimeNames.size(); ++i) {
    if (kRegimeNames[i] == name) return static_cast<int64_t>(i);
  }
  return -1;
}

/// One picture with its ground truth.
struct Sample {
  Image image;          // [H, W, 3], RGB
  Image mask;           // [H, W, 1], 0 or 255
  int64_t regime = -1;  // a value of Regime, or -1 where the data set has no such label
  std::string name;     // the file's name without its ending, or the generator's
};

/// A sample that cannot be read. The loader replaces it in training and leaves it out in evaluation; any other
/// exception ends the run.
struct bad_sample : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// Where samples come from: folders of files, or a generator. `sample` is a pure function of its arguments and is
/// called by several threads at once; a source of files ignores the epoch.
template <class T>
concept source = requires(const T& s, int64_t epoch, int64_t index) {
  { s.size() } -> std::convertible_to<int64_t>;
  { s.sample(epoch, index) } -> std::same_as<Sample>;
};

}  // namespace moecod::data
