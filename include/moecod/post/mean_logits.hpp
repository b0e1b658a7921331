#pragma once
#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>

namespace moecod::post {

/// The mean of maps of logits, one map in memory at a time.
///
///     mean = (1 / n) sum over k of logits_k
///
/// Logits of equal shapes, summed in float32 at least (float64 stays). The mean of one is that one, bit for bit.
/// Synchronises: never. Errors: c10::Error for a map of another shape than the first, or the mean of none.
class MeanLogits {
 public:
  void add(const at::Tensor& logits) {
    const bool small = logits.scalar_type() == at::kHalf || logits.scalar_type() == at::kBFloat16;
    const at::Tensor wide = small ? logits.to(at::kFloat) : logits;
    if (count_ > 0)
      TORCH_CHECK(wide.sizes() == sum_.sizes(), "mean of logits: expected shape ", sum_.sizes(), " as the first, got ",
                  wide.sizes());
    sum_ = count_ > 0 ? sum_ + wide : wide;
    ++count_;
  }

  at::Tensor mean() const {
    TORCH_CHECK(count_ > 0, "mean of logits: there are none");
    return count_ == 1 ? sum_ : sum_ / count_;
  }

 private:
  at::Tensor sum_;
  int64_t count_ = 0;
};

}  // namespace moecod::post
