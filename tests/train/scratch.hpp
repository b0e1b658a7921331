#pragma once
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>

#include "tests/error_of.hpp"

namespace moecod::test {

namespace fs = std::filesystem;

/// A test with an empty folder of its own.
struct Folder : testing::Test {
  Folder() {
    const auto* test = testing::UnitTest::GetInstance()->current_test_info();
    path = fs::temp_directory_path() /
           ("moecod_" + std::string(test->test_suite_name()) + "_" + test->name() + "_" + std::to_string(::getpid()));
    fs::create_directories(path);
  }
  ~Folder() override {
    for (const auto& entry : fs::directory_iterator(path)) fs::remove(entry.path());
    fs::remove(path);
  }
  fs::path path;
};

inline std::string text_of(const fs::path& path) {
  std::ostringstream text;
  text << std::ifstream(path, std::ios::binary).rdbuf();
  return text.str();
}

}  // namespace moecod::test
