#pragma once
#include <ATen/Parallel.h>
#include <ATen/ops/_foreach_add.h>
#include <ATen/ops/_foreach_copy.h>
#include <ATen/ops/_foreach_zero.h>
#include <ATen/ops/cat.h>

#include <exception>
#include <functional>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "moecod/moe/balance/state.hpp"

namespace moecod::train {

/// Copies of a model that train side by side on threads of one process, each on its share of every batch, as ranks of
/// a distributed run would: small models keep a core busier alone than several cores together.
///
/// Replicas share the parameters' storage with the model, which is replica 0, and have gradients and buffers of their
/// own. Batch statistics are those of each share; the model's running statistics follow replica 0, and all buffers are
/// handed on after each step. The order of additions is fixed, so a run repeats bitwise as long as the model itself
/// draws no random numbers (drop-path, dropout). For the CPU. LibTorch threads that begin later have one thread each,
/// as this process's default is changed.
template <class Model>
class Replicas {
 public:
  /// `make` makes a model of the same options; it is called count - 1 times.
  Replicas(Model& model, int64_t count, const std::function<std::unique_ptr<Model>()>& make) : model_(model) {
    TORCH_CHECK(count >= 1, "Replicas: expected at least 1, got ", count);
    TORCH_CHECK(count == 1 || (make && model.parameters().front().is_cpu()),
                "Replicas: more than one replica is for models on the CPU, and needs a way to make them");
    for (int64_t r = 1; r < count; ++r) {
      others_.push_back(make());
      const auto mine = model.named_parameters();
      for (auto& item : others_.back()->named_parameters()) item.value().set_data(mine[item.key()]);
    }
    hand_on_buffers();
  }

  int64_t count() const { return 1 + int64_t(others_.size()); }
  Model& operator[](int64_t r) { return r == 0 ? model_ : *others_[std::size_t(r - 1)]; }

  /// Calls f(r, replica) for every replica, each on a thread of its own with one thread for LibTorch's operations.
  /// Errors: the first replica's that threw, after all have ended.
  template <class F>
  void run(F&& f) {
    if (others_.empty()) return f(int64_t{0}, model_);
    std::vector<std::exception_ptr> errors(std::size_t(count()), nullptr);
    {
      std::vector<std::jthread> threads;
      for (int64_t r = 0; r < count(); ++r)
        threads.emplace_back([&, r] {
          at::set_num_threads(1);
          try {
            f(r, (*this)[r]);
          } catch (...) {
            errors[std::size_t(r)] = std::current_exception();
          }
        });
    }
    for (const std::exception_ptr& error : errors)
      if (error) std::rethrow_exception(error);
  }

  /// Adds the other replicas' gradients to the model's, in order, and zeroes theirs.
  void reduce_gradients() {
    const at::NoGradGuard no_grad;
    for (const auto& other : others_) {
      std::vector<at::Tensor> to, from;
      const auto parameters = model_.parameters(), theirs = other->parameters();
      for (std::size_t i = 0; i < parameters.size(); ++i) {
        if (!theirs[i].grad().defined()) continue;
        if (!parameters[i].grad().defined()) parameters[i].mutable_grad() = at::zeros_like(parameters[i]);
        to.push_back(parameters[i].grad());
        from.push_back(theirs[i].grad());
      }
      if (to.empty()) continue;
      at::_foreach_add_(to, from);
      at::_foreach_zero_(from);
    }
  }

  /// Adds the other replicas' counts to `counts`, which holds those of the model (for balance::commit); empty where no
  /// policy counts.
  void add_counts(at::Tensor& counts) {
    if (counts.numel() == 0) return;
    for (const auto& other : others_) {
      std::vector<at::Tensor> theirs;
      for (const auto* policy : balance::counting(*other)) theirs.push_back(policy->counts);
      counts.add_(at::cat(theirs));
    }
  }

  /// Copies the model's buffers to the other replicas.
  void hand_on_buffers() {
    const at::NoGradGuard no_grad;
    const std::vector<at::Tensor> from = model_.buffers();
    for (const auto& other : others_)
      if (const std::vector<at::Tensor> to = other->buffers(); !to.empty()) at::_foreach_copy_(to, from);
  }

 private:
  Model& model_;
  std::vector<std::unique_ptr<Model>> others_;
};

}  // namespace moecod::train
