#pragma once
#include <cstddef>
#include <cstdint>

/// For functions that kernels call as well as the host.
#ifdef __CUDACC__
#define MOECOD_HOST_DEVICE __host__ __device__
#else
#define MOECOD_HOST_DEVICE
#endif

/// What the kernels take: pointers to device memory and sizes. No LibTorch, no CUDA: any compiler reads this header.
///
/// Sizes as in docs/contracts.md: N rows, E experts, S slots a row, K experts a row, M used slots. All arrays are
/// contiguous. A function that takes one of these structs, and a stream, launches and returns; nothing synchronises.
namespace moecod::kernel {

/// The gates of moe/select/gate.hpp.
enum class Gate : int { softmax_top_k, top_k_softmax, sigmoid };

/// Element types of rows; arithmetic is in float32.
enum class Type : int { float32, bfloat16, float16 };

inline constexpr int max_experts = 256;  ///< that select, plan and conv take
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

/// Rows sorted by expert, each of `each` consecutive items (the positions of an image; 1 for positions).
struct Groups {
  const int32_t* offsets = nullptr;  ///< [E + 1], in rows
  int experts = 1;                   ///< E
  int64_t rows = 0;                  ///< offsets[E], known on the host
  int64_t each = 1;                  ///< items a row
  MOECOD_HOST_DEVICE int64_t items() const { return rows * each; }
  /// Pieces of at most `size` items, each of one expert, that all items are cut into; at most.
  int64_t pieces(int64_t size) const { return (items() + size - 1) / size + (experts < rows ? experts : rows); }
};

/// x[i, c] += bias[expert of item i, c], in place.
struct AddBias {
  Groups groups;
  const void* bias = nullptr;  ///< [E, C]
  int64_t width = 0;           ///< C
  Type type = Type::float32;   ///< of x and bias
  void* x = nullptr;           ///< [items, C]
};

/// sums[e, c] = sum of x[i, c] over the items of expert e, in a fixed order, in float32; 0 for an expert without any.
struct ColumnSums {
  Groups groups;
  const void* x = nullptr;  ///< [items, C]
  int64_t width = 0;        ///< C
  Type type = Type::float32;  ///< of x and sums
  float* partial = nullptr;   ///< [groups.pieces(column_sums_piece), C]
  void* sums = nullptr;       ///< [E, C]
};
inline constexpr int column_sums_piece = 512;

/// Zeros for the experts without rows: x[e, :] = 0 where offsets[e] == offsets[e + 1].
struct ZeroIdle {
  Groups groups;
  int64_t row_bytes = 0;  ///< a multiple of 16
  void* x = nullptr;      ///< [E] rows
};

enum class Activation : int { gelu, swiglu };

/// a = gelu(h), or silu(h[:, :n]) * h[:, n:] for swiglu, which halves the width.
struct Activate {
  const void* h = nullptr;  ///< [rows, n] or [rows, 2 n]
  int64_t rows = 0;
  int64_t width = 0;  ///< n
  Activation activation = Activation::gelu;
  Type type = Type::float32;
  void* a = nullptr;  ///< [rows, n]
};

/// d_h from d_a, and a computed anew.
struct ActivateBackward {
  const void* d_a = nullptr;  ///< [rows, n]
  const void* h = nullptr;
  int64_t rows = 0;
  int64_t width = 0;  ///< n
  Activation activation = Activation::gelu;
  Type type = Type::float32;
  void* d_h = nullptr;
  void* a = nullptr;  ///< [rows, n] or null
};

/// A convolution of stride 1 of images sorted by expert; all in bfloat16, channels last.
struct ConvShape {
  int height = 0, width = 0;  ///< of x
  int in = 0, out = 0;        ///< channels, multiples of 8
  int kernel[2] = {1, 1};
  int padding[2] = {0, 0};
  int dilation[2] = {1, 1};
  MOECOD_HOST_DEVICE int out_height() const { return height + 2 * padding[0] - dilation[0] * (kernel[0] - 1); }
  MOECOD_HOST_DEVICE int out_width() const { return width + 2 * padding[1] - dilation[1] * (kernel[1] - 1); }
  MOECOD_HOST_DEVICE int taps() const { return kernel[0] * kernel[1]; }
};

/// y = conv(x, weight of the image's expert); with `transposed` the gradient of its input: x is then the output's
/// gradient and y the input's.
///
/// `gated`: of one tap, y = silu(g) u, [g, u] = conv, halves of its channels, which are kept in h unless it is null. With
/// `transposed`, the input was such an a = silu(g) u, and y becomes the gradient of h = [g, u], which is read, and a is
/// computed anew. No moments.
///
/// `weights`: what was made of each row's a counted so much more, so y and a become that much larger; and d_weights becomes
/// their gradient, the product of a and its gradient, in the slots that `order` names.
///
/// `slots`: x is not sorted yet. Row i is x[order[i] / slots], gathered as it is loaded. Gated.
struct Conv {
  Groups groups;  ///< each: set by the launch
  ConvShape shape;
  bool transposed = false;
  bool gated = false;
  const void* x = nullptr;       ///< [M, H, W, in]
  const void* weight = nullptr;  ///< [E, out, kh, kw, in]
  void* y = nullptr;             ///< [M, H', W', out], transposed [M, H, W, in], gated [M, H', W', out / 2], both [M, H, W, 2 in]
  void* h = nullptr;             ///< gated: [M, H', W', out], or transposed [M, H, W, 2 in]
  void* a = nullptr;             ///< gated and transposed: [M, H, W, in]
  const float* weights = nullptr;  ///< gated and transposed, of rows: [N S] or null
  const int32_t* order = nullptr;  ///< with weights or slots: [M], each row's slot
  int slots = 0;                   ///< S, or 0 where x is sorted
  float* partial = nullptr;        ///< with weights: [conv_gate_parts(), M], or null where d_weights is not needed
  float* d_weights = nullptr;      ///< with partial: [N S]; slots that no row has are left alone
  /// Mean, and sum of squares about it, of each channel over each piece of conv_piece() positions of one
  /// expert, [pieces, 2, channels]; or null.
  float* moments = nullptr;
};

/// `gathers`: of x or of grad, row i is that of order[i] / slots, gathered as it is loaded; of one tap.
struct ConvWeight {
  enum class Gathers : int { none, x, grad };
  Groups groups;
  ConvShape shape;
  const void* x = nullptr;     ///< [M, H, W, in]
  const void* grad = nullptr;  ///< [M, H', W', out]
  Gathers gathers = Gathers::none;
  const int32_t* order = nullptr;  ///< [M], each row's slot
  int slots = 0;                   ///< S
  float* partial = nullptr;    ///< [conv_weight_partial()] or null where that is 0
  void* d_weight = nullptr;    ///< [E, out, kh, kw, in]
};

/// y = conv of each channel with the image's expert's filter for it, plus its bias; with `transposed` the gradient of its
/// input, x and y as for Conv. shape.in and shape.out are both C, of any number. Fewer than 2^31 elements.
struct Depthwise {
  Groups groups;  ///< each: not used
  ConvShape shape;
  bool transposed = false;
  Type type = Type::float32;     ///< of x, weight, bias and y
  const void* x = nullptr;       ///< [M, H, W, C]
  const void* weight = nullptr;  ///< [E, kh, kw, C]
  const void* bias = nullptr;    ///< [E, C] or null
  void* y = nullptr;             ///< [M, H', W', C]
};

/// The gradients of the filters and, behind them, of the bias.
struct DepthwiseWeight {
  Groups groups;  ///< each: H' W'
  ConvShape shape;
  Type type = Type::float32;
  const void* x = nullptr;     ///< [M, H, W, C]
  const void* grad = nullptr;  ///< [M, H', W', C]
  float* partial = nullptr;    ///< [groups.pieces(column_sums_piece), kh kw + 1, C]
  void* d_weight = nullptr;    ///< [E, kh kw + 1, C]
};
inline constexpr int depthwise_columns = 7;  ///< kw that DepthwiseWeight takes, at most

/// Depthwise convolution by 3x3 filters that keeps height and width: y = h, or gelu(h), or given the gradient of the latter
/// y = grad gelu'(h), the gradient of h.
struct Depthwise3x3 {
  Groups groups;  ///< each: not used
  int height = 0, width = 0, channels = 0;
  Type type = Type::float32;     ///< of all tensors
  bool transposed = false;       ///< the gradient of the input: x is the output's, y the input's
  bool gelu = false;
  const void* x = nullptr;       ///< [M, H, W, C]
  const void* weight = nullptr;  ///< [E, 3, 3, C]
  const void* bias = nullptr;    ///< [E, C] or null
  const void* grad = nullptr;    ///< [M, H, W, C] or null; needs gelu
  void* y = nullptr;             ///< [M, H, W, C]
};

/// All gradients of it at once, from that of h.
struct Depthwise3x3Backward {
  Groups groups;  ///< each: not used
  int height = 0, width = 0, channels = 0;
  Type type = Type::float32;
  const void* grad = nullptr;    ///< [M, H, W, C]
  const void* x = nullptr;       ///< [M, H, W, C]
  const void* weight = nullptr;  ///< [E, 3, 3, C]
  float* partial = nullptr;      ///< [M depthwise_3x3_strips(), 10, C]
  void* d_x = nullptr;           ///< [M, H, W, C] or null
  void* d_weight = nullptr;      ///< [E, 10, C]: of the filter, and behind them of the bias
};

/// Strips that an image's rows are cut into.
MOECOD_HOST_DEVICE constexpr int depthwise_3x3_strips(int height) { return (height + 15) / 16; }

/// Batch normalisation over the positions of each expert's images, then ReLU if asked for; bfloat16, channels last.
struct Normalise {
  Groups groups;
  int channels = 0;  ///< C, a multiple of 8
  const void* x = nullptr;         ///< [items, C]
  const float* weight = nullptr;   ///< [E, C]
  const float* bias = nullptr;     ///< [E, C]
  float* running_mean = nullptr;   ///< [E, C]
  float* running_var = nullptr;    ///< [E, C]
  int64_t* tracked = nullptr;      ///< [E]
  bool batch_statistics = true;    ///< else the running ones are used
  bool moves = true;               ///< whether the running ones move
  bool relu = false;
  float momentum = 0.1f, eps = 1e-5f;
  const float* moments = nullptr;  ///< [pieces, 2, C] of pieces of `piece` items
  int piece = 0;
  float* used = nullptr;  ///< [E, 2, C]: the mean and 1 / sqrt(variance + eps) that were used
  void* y = nullptr;      ///< [items, C]
};

/// Items that one block of the normalisation takes: enough blocks for a large device, and no more than 512.
MOECOD_HOST_DEVICE constexpr int norm_piece(int64_t items) {
  int piece = 32;
  while (piece < 512 && items / piece > 2048) piece *= 2;
  return piece;
}

struct NormaliseBackward {
  Groups groups;
  int channels = 0;
  const void* grad = nullptr;  ///< [items, C]
  const void* x = nullptr;     ///< [items, C]
  const float* weight = nullptr;
  const float* bias = nullptr;
  const float* used = nullptr;
  bool batch_statistics = true;
  bool relu = false;
  float* partial = nullptr;   ///< [groups.pieces(norm_piece), 2, C]
  float* d_weight = nullptr;  ///< [E, C]
  float* d_bias = nullptr;    ///< [E, C]
  void* d_x = nullptr;        ///< [items, C]
};

/// y = (x - mean) / sqrt(variance + eps) * weight + bias, of each item's expert, over the last dimension.
struct LayerNorm {
  Groups groups;
  int64_t width = 0;              ///< C
  Type type = Type::float32;      ///< of x and y
  float eps = 1e-5f;
  const void* x = nullptr;        ///< [items, C]
  const float* weight = nullptr;  ///< [E, C]
  const float* bias = nullptr;    ///< [E, C]
  void* y = nullptr;              ///< [items, C]
};

/// Whether rows of such a width are taken; pointers must be multiples of 16 bytes.
MOECOD_HOST_DEVICE constexpr bool layer_norm_takes(int64_t width, Type type) {
  const int64_t vector = type == Type::float32 ? 4 : 8;
  return width > 0 && width % vector == 0 && width / vector <= 128;
}

/// Items that one block of its backward pass takes: at most 1,024 pieces of an expert.
MOECOD_HOST_DEVICE constexpr int64_t layer_norm_piece(int64_t items) {
  int64_t piece = 32;
  while (piece * 1024 < items) piece *= 2;
  return piece;
}

struct LayerNormBackward {
  Groups groups;
  int64_t width = 0;
  Type type = Type::float32;  ///< of grad, x and d_x
  float eps = 1e-5f;
  const void* grad = nullptr;     ///< [items, C]
  const void* x = nullptr;        ///< [items, C]
  const float* weight = nullptr;  ///< [E, C]
  float* partial = nullptr;       ///< [2, groups.pieces(layer_norm_piece), C]
  float* d_weight = nullptr;      ///< [E, C]
  float* d_bias = nullptr;        ///< [E, C]
  void* d_x = nullptr;            ///< [items, C]
};

/// Maps [images, height, width, channels] resampled to [images, out_height, out_width, channels], by the bands of both
/// sides (band.hpp): forward, the inputs that an output is made of; backward, the outputs whose gradients an input gets.
/// channels 1: one map after the other. Fewer than 2^31 elements on either side, 2^19 a row of y.
struct Resample {
  const void* x = nullptr;         ///< [images, height, width, channels]
  const int64_t* index = nullptr;  ///< backward of a maximum: the place of y that each element of x came from; else null
  const float* rows = nullptr;     ///< [1 + row_taps, out_height]
  const float* columns = nullptr;  ///< [1 + column_taps, out_width]
  int64_t images = 0;
  int channels = 1, height = 1, width = 1, out_height = 1, out_width = 1, row_taps = 1, column_taps = 1;
  Type type = Type::float32;
  void* y = nullptr;  ///< [images, out_height, out_width, channels]
};

}  // namespace moecod::kernel
