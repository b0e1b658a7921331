#pragma once
#include <tuple>
#include <utility>

namespace moecod::detail {

/// Tells policies how many channels their input has (a number, or one a level), wherever their options ask for it.
template <class Options, class Channels>
void set_channels(Options& options, const Channels& channels) {
  if constexpr (requires { options.channels = channels; }) options.channels = channels;
  if constexpr (requires { std::tuple_size<decltype(options.each)>::value; })
    std::apply([&](auto&... each) { (set_channels(each, channels), ...); }, options.each);
}

}  // namespace moecod::detail
