#pragma once
#include <utility>
#include <vector>

#include "moecod/core/walk.hpp"

namespace moecod {

/// Puts every module at and below one back into the mode, training or evaluation, that it had, when this object ends.
class KeepModes {
 public:
  explicit KeepModes(torch::nn::Module& root) {
    for_each_module(root, [&](const std::string&, torch::nn::Module& module) {
      modes_.emplace_back(&module, module.is_training());
    });
  }
  KeepModes(const KeepModes&) = delete;
  KeepModes& operator=(const KeepModes&) = delete;
  ~KeepModes() {
    // train() reaches below a module; parents come before children, so that each ends in its own mode.
    for (const auto& [module, training] : modes_) module->train(training);
  }

 private:
  std::vector<std::pair<torch::nn::Module*, bool>> modes_;
};

}  // namespace moecod
