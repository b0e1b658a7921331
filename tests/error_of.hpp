#pragma once
#include <exception>
#include <string>

namespace moecod::test {

/// The message of what f throws, or nothing.
template <class F>
std::string error_of(F&& f) {
  try {
    f();
  } catch (const std::exception& error) {
    return error.what();
  }
  return "";
}

}  // namespace moecod::test
