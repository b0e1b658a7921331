#pragma once
#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace moecod::post {

/// One way to look at a picture: resized by `scale`, mirrored left to right, upside down.
struct View {
  double scale = 1;
  bool flip = false;
  bool vflip = false;
  bool operator==(const View&) const = default;
};

/// The views of a list like "flip,0.75,1.25": every scale, 1 among them, with every combination of the flips named
/// ("flip" left to right, "vflip" upside down). The picture as it is comes first, whatever the list; an empty list
/// gives that one alone. Needs no LibTorch.
/// Errors: std::invalid_argument naming a word that is neither a flip nor a scale in [0.1, 10], or is there twice.
inline std::vector<View> views_from(const std::string& list) {
  std::vector<double> scales{1};
  bool flip = false, vflip = false;
  const auto set = [](bool& once, const std::string& word) {
    if (once) throw std::invalid_argument("views: " + word + " is there twice");
    once = true;
  };
  for (std::size_t begin = 0; !list.empty() && begin <= list.size();) {
    const std::size_t end = std::min(list.find(',', begin), list.size());
    const std::string word = list.substr(begin, end - begin);
    begin = end + 1;
    if (word == "flip") {
      set(flip, word);
    } else if (word == "vflip") {
      set(vflip, word);
    } else {
      double scale = 0;
      const auto [stop, error] = std::from_chars(word.data(), word.data() + word.size(), scale);
      if (error != std::errc() || stop != word.data() + word.size() || !(scale >= 0.1 && scale <= 10))
        throw std::invalid_argument("views: expected flip, vflip or a scale from 0.1 to 10, got '" + word + "'");
      if (std::find(scales.begin(), scales.end(), scale) != scales.end())
        throw std::invalid_argument("views: scale " + word + (scale == 1 ? " is always there" : " is there twice"));
      scales.push_back(scale);
    }
  }
  std::vector<View> views;
  for (const double scale : scales)
    for (const bool upside_down : {false, true})
      for (const bool mirrored : {false, true})
        if ((flip || !mirrored) && (vflip || !upside_down)) views.push_back({scale, mirrored, upside_down});
  return views;
}

}  // namespace moecod::post
