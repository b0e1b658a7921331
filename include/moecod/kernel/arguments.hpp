#pragma once
#include <cstddef>
#include <cstdint>

/// What the kernels take: pointers to device memory and sizes. No LibTorch, no CUDA: any compiler reads this header.
///
/// Sizes as in docs/contracts.md: N rows, E experts, S slots a row, K experts a row, M used slots. All arrays are
/// contiguous. A function that takes one of these structs, and a stream, launches and returns; nothing synchronises.
namespace moecod::kernel {

/// The gates of moe/select/gate.hpp.
enum class Gate : int { softmax_top_k, top_k_softmax, sigmoid };

/// Element types of rows; arithmetic is in float32.
enum class Type : int { float32, bfloat16, float16 };

inline constexpr int max_experts = 256;  ///< that select and plan take
inline constexpr int max_per_row = 8;    ///< that select takes

struct SelectForward {
  const float* logits = nullptr;          ///< [N, E]
  const float* logit_bias = nullptr;      ///< [E] or null, added to the logits
  const float* selection_bias = nullptr;  ///< [E] or null, added to the scores for choosing only
  int64_t rows = 0;
  int experts = 1;  ///< E, at most max_experts
  int per_row = 1;  ///< K, at most max_per_row and E
  Gate gate = Gate::softmax_top_k;
  float* scores = nullptr;    ///< [N, E]
  int32_t* chosen = nullptr;  ///< [N, K]
  float* weights = nullptr;   ///< [N, K]
  int64_t* counts = nullptr;  ///< [E]
};

struct SelectBackward {
  const float* d_scores = nullptr;   ///< [N, E] or null for zeros
  const float* d_weights = nullptr;  ///< [N, K] or null for zeros
  const float* scores = nullptr;     ///< [N, E], of the forward
  const int32_t* chosen = nullptr;   ///< [N, K]
  const float* weights = nullptr;    ///< [N, K]
  int64_t rows = 0;
  int experts = 1;
  int per_row = 1;
  Gate gate = Gate::softmax_top_k;
  float* d_logits = nullptr;  ///< [N, E]
};

struct Plan {
  const int32_t* experts = nullptr;  ///< [items]; what is outside of [0, E) is an unused slot
  int64_t items = 0;                 ///< N*S, below 2^31
  int num_experts = 1;               ///< E, at most max_experts
  int64_t assignments = 0;           ///< M, used slots
  int32_t* workspace = nullptr;      ///< [plan_workspace(items, E)] int32, written before it is read
  int32_t* order = nullptr;          ///< [M]
  int32_t* offsets = nullptr;        ///< [E + 1]
  int32_t* position = nullptr;       ///< [items]
};

/// Rows of x, copied to the places that their slots were sorted to: out[position[n, s] - first] = x[n] for every slot
/// with first <= position < first + count.
struct Gather {
  const void* x = nullptr;            ///< [N] rows
  const int32_t* position = nullptr;  ///< [N, S]
  int64_t rows = 0;                   ///< N
  int slots = 1;                      ///< S
  int64_t row_bytes = 0;
  int64_t first = 0;
  int64_t count = 0;
  void* out = nullptr;  ///< [count] rows
};

/// y[n] = sum over slots s, in their order, of weights[n, s] * sorted[position[n, s] - first], in float32; slots with a
/// position outside of [first, first + count) are left out.
struct Combine {
  const void* sorted = nullptr;       ///< [count, D]
  const float* weights = nullptr;     ///< [N, S] or null for ones
  const int32_t* position = nullptr;  ///< [N, S]
  int64_t rows = 0;                   ///< N
  int slots = 1;                      ///< S
  int64_t width = 0;                  ///< D
  Type type = Type::float32;          ///< of sorted and y
  int64_t first = 0;
  int64_t count = 0;
  void* y = nullptr;  ///< [N, D]
};

/// d_sorted[position[n, s]] = weights[n, s] * grad[n]; d_weights[n, s] = <grad[n], sorted[position[n, s]]>.
struct CombineBackward {
  const void* grad = nullptr;         ///< [N, D]
  const void* sorted = nullptr;       ///< [M, D]; needed for d_weights only
  const float* weights = nullptr;     ///< [N, S]
  const int32_t* position = nullptr;  ///< [N, S]
  int64_t rows = 0;                   ///< N
  int slots = 1;                      ///< S
  int64_t width = 0;                  ///< D
  Type type = Type::float32;          ///< of grad, sorted and d_sorted
  float* partial = nullptr;           ///< [N, S, splits] where combine_backward_splits is above 1, else unused
  void* d_sorted = nullptr;           ///< [M, D] or null
  float* d_weights = nullptr;         ///< [N, S] or null
};

}  // namespace moecod::kernel
