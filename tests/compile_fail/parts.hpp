#pragma once
// Policies that are complete, for cases that each break one thing. Nothing here is ever run.
#include "moecod/moe/dispatch/batched.hpp"
#include "moecod/moe/mixture.hpp"
#include "moecod/moe/select/top_k.hpp"

namespace good {

using namespace moecod;

struct Router : torch::nn::Module {
  using policy_kind = kind::router;
  using granularity = rows::Images;
  struct Options {
    std::int64_t experts = 1;
  };
  Router() = default;
  explicit Router(const Options&) {}
  at::Tensor forward(const at::Tensor& x) { return x; }
};

struct PositionRouter : Router {
  using granularity = rows::Positions;
  using Router::Router;
};

/// A store of spatial experts that are not stacked.
struct Experts : torch::nn::Module {
  using policy_kind = kind::experts;
  using rows = rows::Images;
  static constexpr std::int64_t count = 2;
  static constexpr bool stacked = false;
  struct Options {};
  Experts() = default;
  explicit Experts(const Options&) {}
  bool recompute = false;
};

struct Balance : torch::nn::Module {
  using policy_kind = kind::balance;
  struct Options {
    std::int64_t experts = 1;
  };
  Balance() = default;
  explicit Balance(const Options&) {}
};

using Select = select::TopK<1>;
using Dispatch = dispatch::Batched;

}  // namespace good

/// Asks for the mixture's definition, as any use of it does.
template <class Mixture>
constexpr std::size_t use = sizeof(Mixture);
