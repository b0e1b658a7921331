#pragma once
#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/clamp_min.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/softmax.h>

/// How logits become scores, and the scores of the chosen experts become gate weights.
///
/// A gate offers `scores(logits) [N, E]`, by which experts are chosen, and `weights(scores, logits)`, both [N, S] of
/// the chosen experts, and says whether its weights are renormalised over the chosen (`renormalises`). A gate that the
/// operator moecod::select computes too says under which name (`fused`).
namespace moecod::gate {

/// Scores softmax(logits); weights are the scores of the chosen, not renormalised (Fedus et al. 2021).
struct SoftmaxTopK {
  static constexpr const char* fused = "softmax_top_k";
  static constexpr bool renormalises = false;
  static at::Tensor scores(const at::Tensor& logits) { return at::softmax(logits, -1); }
  static at::Tensor weights(const at::Tensor& chosen_scores, const at::Tensor&) { return chosen_scores; }
};

/// Scores softmax(logits); weights are a softmax over the chosen logits (Shazeer et al. 2017).
struct TopKSoftmax {
  static constexpr const char* fused = "top_k_softmax";
  static constexpr bool renormalises = true;
  static at::Tensor scores(const at::Tensor& logits) { return at::softmax(logits, -1); }
  static at::Tensor weights(const at::Tensor&, const at::Tensor& chosen_logits) {
    return at::softmax(chosen_logits, -1);
  }
};

/// Scores sigmoid(logits); weights are the chosen scores over their sum (DeepSeek-V3, arXiv 2412.19437).
struct Sigmoid {
  static constexpr const char* fused = "sigmoid";
  static constexpr bool renormalises = true;
  static at::Tensor scores(const at::Tensor& logits) { return at::sigmoid(logits); }
  static at::Tensor weights(const at::Tensor& chosen_scores, const at::Tensor&) {
    return chosen_scores / at::clamp_min(chosen_scores.sum(-1, /*keepdim=*/true), 1e-20);
  }
};

}  // namespace moecod::gate
