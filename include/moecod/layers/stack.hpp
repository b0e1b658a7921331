#pragma once
#include <ATen/core/Tensor.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/tensor.h>
#include <torch/nn/module.h>

#include <memory>
#include <vector>

#include "moecod/core/autocast.hpp"
#include "moecod/core/operators.hpp"
#include "moecod/layers/size_tensor.hpp"

namespace moecod::distributed {
class Group;
}

/// Layers for one expert or for n stacked ones, from the same source.
///
/// An expert is written over a template argument `Layers`: layers::Single builds ordinary layers; layers::Stacked{n}
/// builds layers whose every parameter and buffer has a leading dimension of n experts. Each forward takes a group
/// that says which rows belong to which expert; for Single it is empty.
namespace moecod::layers {

/// One expert.
struct Single {
  static constexpr bool stacked = false;
  struct Group {};
  std::vector<int64_t> shape(std::vector<int64_t> each) const { return each; }
};

/// n experts in one set of tensors, [n, ...].
struct Stacked {
  static constexpr bool stacked = true;
  int64_t n = 1;

  /// Which rows belong to which expert: all of them to one, or, sorted by expert, those between two offsets.
  struct Group {
    int64_t expert = -1;
    at::Tensor offsets;  ///< [n + 1] int32, on the rows' device

    static Group one(int64_t expert) { return {expert, {}, {}}; }
    static Group sorted(const at::Tensor& offsets) {
      return {-1, offsets, std::make_shared<std::vector<int64_t>>()};
    }

    /// The offsets on the host. Synchronises: the first time that a copy of the group is asked.
    const std::vector<int64_t>& bounds() const {
      TORCH_CHECK(host, "a stacked layer needs a group that says whose its rows are");
      if (host->empty()) {
        const at::Tensor copy = offsets.to(at::kCPU, at::kLong);
        const int64_t* p = copy.const_data_ptr<int64_t>();
        host->assign(p, p + copy.numel());
      }
      return *host;
    }

    std::shared_ptr<std::vector<int64_t>> host;  ///< shared by copies; empty until it is asked for
  };

  std::vector<int64_t> shape(std::vector<int64_t> each) const {
    each.insert(each.begin(), n);
    return each;
  }
};

/// Runs f(rows of expert e, e) for each expert that has rows, or with `idle` for every one, and joins the results.
/// Synchronises: on CUDA once a forward, for the layers that have no operator of all experts together.
template <class F>
at::Tensor for_each_expert(const at::Tensor& x, const Stacked::Group& group, F&& f, bool idle = false) {
  if (group.expert >= 0) return f(x, group.expert);
  const std::vector<int64_t>& bounds = group.bounds();
  std::vector<at::Tensor> out;
  for (std::size_t e = 0; e + 1 < bounds.size(); ++e)
    if (idle || bounds[e] < bounds[e + 1])
      out.push_back(f(x.slice(0, bounds[e], bounds[e + 1]), static_cast<int64_t>(e)));
  if (out.empty()) return f(x, 0);  // no rows: for the shape, and so that gradients find their way
  return out.size() == 1 ? out.front() : at::cat(out, 0);
}

/// The operator that runs all experts of a stacked layer together, where rows on CUDA are sorted by expert; else null.
template <class Operator>
auto find_grouped(const at::Tensor& x, const Stacked::Group& group) {
  return group.expert < 0 ? operators::find_for<Operator>(x) : nullptr;
}

namespace detail {

inline at::Tensor zero_and(int64_t, int64_t rows, bool) { return at::tensor({int64_t{0}, rows}, at::kLong); }

}  // namespace detail

/// Where the rows of each expert begin and end, [n + 1] int32 on the rows' device: the group's, or for a single expert 0
/// and all of them. Synchronises: for a single expert on CUDA, the first time that it has so many rows.
template <class Layers>
at::Tensor offsets_of(const at::Tensor& x, const typename Layers::Group& group) {
  if constexpr (Layers::stacked) {
    return group.offsets;
  } else {
    (void)group;
    return detail::size_tensor(detail::zero_and, 0, x.size(0), false, x.options().dtype(at::kInt));
  }
}

/// A parameter or buffer with the leading dimension of experts that a single one lacks.
template <class Layers>
at::Tensor as_stacked(const at::Tensor& parameter) {
  if constexpr (Layers::stacked) {
    return parameter;
  } else {
    return parameter.unsqueeze(0);
  }
}

/// Whether a layer that follows autocast, which leaves float64 alone, works on such rows in bfloat16 on CUDA.
inline bool in_bfloat16(const at::Tensor& x) {
  if (!x.is_cuda() || x.scalar_type() == at::kDouble) return false;
  const AutocastState autocast = AutocastState::current(at::kCUDA);
  return (autocast.enabled ? autocast.dtype : x.scalar_type()) == at::kBFloat16;
}

/// The slices of a stacked parameter that a group needs, one an expert; undefined for an absent parameter.
class Slices {
 public:
  Slices(const at::Tensor& stacked, const Stacked::Group& group) : stacked_(stacked) {
    // One unbind has one backward that assembles the whole gradient; a select an expert would each make a whole one.
    if (stacked.defined() && group.expert < 0) each_ = stacked.unbind(0);
  }
  at::Tensor operator[](int64_t e) const {
    if (!stacked_.defined()) return {};
    return each_.empty() ? stacked_.select(0, e) : each_[e];
  }

 private:
  at::Tensor stacked_;
  std::vector<at::Tensor> each_;
};

/// A layer whose parameter `weight` is subject to weight decay (convolutions and linear maps; never norms, biases,
/// gates or temperatures, whatever their number of dimensions).
struct Decays {
  virtual ~Decays() = default;
};

/// A layer with running statistics of batches; a stage of training may keep them fixed.
struct BatchStatistics {
  virtual ~BatchStatistics() = default;

  /// The ranks over whose rows together it normalises in training (distributed/synchronise_statistics.hpp); none: this
  /// one's.
  std::shared_ptr<distributed::Group> ranks;
};

}  // namespace moecod::layers
