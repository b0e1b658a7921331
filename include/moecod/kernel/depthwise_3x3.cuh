#pragma once
#include "moecod/kernel/activation.cuh"
#include "moecod/kernel/columns.cuh"
#include "moecod/kernel/pieces.cuh"

/// Depthwise convolutions by 3x3 filters at stride 1 with padding 1, what transformers with convolutional feed-forward
/// layers have most of. (depthwise.cuh takes every filter.)
///
/// A thread holds the filters of four channels and walks down two columns (backward: one) of a strip of rows. Of each row it
/// fetches the columns and their neighbours, which give to the outputs above, beside and below, so no row of a strip is read twice; the
/// neighbours meet in the first cache, as a block's warps lie side by side. Rows are fetched ahead. Bias and GELU are part of
/// the pass, as is, in the backward pass, the derivative of GELU at the result computed anew, which therefore nobody keeps.
///
/// Backward, the same walk down the gradient gives to the three rows of d_x around it and, times the three rows of x, to
/// all nine weights: each of both is read once. Weights are summed over a strip, strips in their order: no atomics.
/// Bytes: forward x in, y out; backward the same with grad (through GELU), then grad and x in, d_x out.
namespace moecod::kernel {

namespace detail {

struct Depthwise3x3Tuning {
  static constexpr int threads = 256, vector = 4;
  static constexpr int warps = threads / 32;
  static constexpr int columns = 2;  // a thread's, in the forward pass
};

/// Which channels and columns a thread takes: a row of `lanes` vectors of channels for each of its block's columns.
struct Depthwise3x3Place {
  int vectors, lanes, columns;  // vectors of a pixel; lanes and columns of a block
  int v, column;                // the thread's vector, and its column of the block
  int first, end;               // rows of the strip
  bool live;
  __device__ Depthwise3x3Place(int channels, int height, int lanes_, int strip)
      : vectors(channels / Depthwise3x3Tuning::vector), lanes(lanes_), columns(Depthwise3x3Tuning::threads / lanes_) {
    v = blockIdx.x * lanes + (threadIdx.x & (lanes - 1));
    column = threadIdx.x / lanes;
    const int strips = depthwise_3x3_strips(height), rows = (height + strips - 1) / strips;
    first = strip * rows;
    end = min(first + rows, height);
    live = v < vectors;
  }
};

/// `Columns` neighbouring pixels of one row and those left and right of them; zero outside of the image.
template <class T, int Columns>
struct RowOfNeighbours {
  using Vector = Pack<T, Depthwise3x3Tuning::vector>;
  Vector at[Columns + 2];
  __device__ __forceinline__ void read(const Vector* image, int row, int column, int height, int width, int vectors) {
    const bool inside = row >= 0 && row < height;
    const Vector* from = image + (row * width + column - 1) * vectors;
#pragma unroll
    for (int i = 0; i < Columns + 2; ++i) {
      at[i] = Vector{};
      if (inside && column - 1 + i >= 0 && column - 1 + i < width) at[i] = from[i * vectors];
    }
  }
};

template <class T>
__device__ __forceinline__ void read_filter(const void* weight, int expert, int vectors, int v, bool flipped,
                                            float (&filter)[9][Depthwise3x3Tuning::vector]) {
  using Vector = Pack<T, Depthwise3x3Tuning::vector>;
#pragma unroll
  for (int tap = 0; tap < 9; ++tap)
    static_cast<const Vector*>(weight)[(int64_t(expert) * 9 + (flipped ? 8 - tap : tap)) * vectors + v].read(
        [&](int c, float w) { filter[tap][c] = w; });
}

/// Grid: chunks of channels; blocks of columns; images times strips.
template <class T>
__global__ void __launch_bounds__(Depthwise3x3Tuning::threads, 2) depthwise_3x3(const Depthwise3x3 a, int lanes) {
  constexpr int V = Depthwise3x3Tuning::vector, Columns = Depthwise3x3Tuning::columns;
  using Vector = Pack<T, V>;
  const int strips = depthwise_3x3_strips(a.height), image = blockIdx.z / strips;
  const Depthwise3x3Place place(a.channels, a.height, lanes, blockIdx.z % strips);
  const int column = Columns * (blockIdx.y * place.columns + place.column), vectors = place.vectors;
  if (!place.live || column >= a.width) return;
  const int expert = expert_of(a.groups.offsets, a.groups.experts, image);
  float filter[9][V], bias[V] = {};
  read_filter<T>(a.weight, expert, vectors, place.v, a.transposed, filter);
  if (a.bias)
    static_cast<const Vector*>(a.bias)[int64_t(expert) * vectors + place.v].read([&](int c, float b) { bias[c] = b; });
  const int64_t start = int64_t(image) * a.height * a.width * vectors + place.v;
  const Vector *x = static_cast<const Vector*>(a.x) + start, *grad = static_cast<const Vector*>(a.grad);
  Vector* y = static_cast<Vector*>(a.y) + start;
  if (grad) grad += start;
  float above[Columns][V] = {}, here[Columns][V], below[Columns][V];
#pragma unroll
  for (int k = 0; k < Columns; ++k)
#pragma unroll
    for (int c = 0; c < V; ++c) here[k][c] = bias[c];
  RowOfNeighbours<T, Columns> row, next, after;  // two rows on their way hide the latency of memory
  row.read(x, place.first - 1, column, a.height, a.width, vectors);
  next.read(x, place.first, column, a.height, a.width, vectors);
  for (int r = place.first - 1; r <= place.end; ++r) {
    if (r + 2 <= place.end) after.read(x, r + 2, column, a.height, a.width, vectors);
    const int to = ((r - 1) * a.width + column) * vectors;  // the row above, which has all of its three after this
    Vector outer[Columns];
    if (grad && r > place.first) {
#pragma unroll
      for (int k = 0; k < Columns; ++k)
        if (column + k < a.width) outer[k] = grad[to + k * vectors];
    }
#pragma unroll
    for (int k = 0; k < Columns; ++k)
#pragma unroll
      for (int c = 0; c < V; ++c) below[k][c] = bias[c];
#pragma unroll
    for (int i = 0; i < Columns + 2; ++i)
      row.at[i].read([&](int c, float in) {
#pragma unroll
        for (int k = 0; k < Columns; ++k) {
          const int tap = i - k;
          if (tap < 0 || tap > 2) continue;
          above[k][c] = fmaf(filter[6 + tap][c], in, above[k][c]);
          here[k][c] = fmaf(filter[3 + tap][c], in, here[k][c]);
          below[k][c] = fmaf(filter[tap][c], in, below[k][c]);
        }
      });
    if (r > place.first) {
#pragma unroll
      for (int k = 0; k < Columns; ++k) {
        if (column + k >= a.width) continue;
        Vector out;
        out.write([&](int c) { return above[k][c]; });  // rounds, as if h had been stored
        if (grad) {
          float d[V];
          outer[k].read([&](int c, float g) { d[c] = g; });
          out.read([&](int c, float h) {
            float value, none;
            Gelu::backward(d[c], h, 0, value, above[k][c], none);
          });
        } else if (a.gelu) {
          out.read([&](int c, float h) { above[k][c] = Gelu::forward(h, 0); });
        }
        if (a.gelu) out.write([&](int c) { return above[k][c]; });
        y[to + k * vectors] = out;
      }
    }
#pragma unroll
    for (int k = 0; k < Columns; ++k)
#pragma unroll
      for (int c = 0; c < V; ++c) {
        above[k][c] = here[k][c];
        here[k][c] = below[k][c];
      }
    row = next;
    next = after;
  }
}

/// Grid: chunks of channels; one; images times strips. A block walks over all columns.
template <class T>
__global__ void __launch_bounds__(Depthwise3x3Tuning::threads, 2)
    depthwise_3x3_backward(const Depthwise3x3Backward a, int lanes) {
  constexpr int V = Depthwise3x3Tuning::vector, warps = Depthwise3x3Tuning::warps;
  using Vector = Pack<T, V>;
  __shared__ float part[warps][10 * 32 * V];
  const int strips = depthwise_3x3_strips(a.height), image = blockIdx.z / strips;
  const Depthwise3x3Place place(a.channels, a.height, lanes, blockIdx.z % strips);
  const int vectors = place.vectors, expert = expert_of(a.groups.offsets, a.groups.experts, image);
  float filter[9][V], sums[10][V] = {};  // sums: of the nine weights, and of the bias
  if (place.live) {
    read_filter<T>(a.weight, expert, vectors, place.v, /*flipped=*/true, filter);
    const int64_t start = int64_t(image) * a.height * a.width * vectors + place.v;
    const Vector* grad = static_cast<const Vector*>(a.grad) + start;
    const Vector* x = static_cast<const Vector*>(a.x) + start;
    for (int column = place.column; column < a.width; column += place.columns) {
      const auto read_x = [&](int r) {  // rows outside of the strip are another block's
        return r >= place.first && r < place.end ? x[(r * a.width + column) * vectors] : Vector{};
      };
      float above[V] = {}, here[V] = {}, below[V];
      Vector x_above{}, x_here{}, x_below = read_x(place.first), x_next = read_x(place.first + 1);
      RowOfNeighbours<T, 1> row, next;
      row.read(grad, place.first - 1, column, a.height, a.width, vectors);
      for (int r = place.first - 1; r <= place.end; ++r) {
        if (r < place.end) next.read(grad, r + 1, column, a.height, a.width, vectors);
        const Vector x_after = read_x(r + 3);
        const bool inside = r >= place.first && r < place.end;
#pragma unroll
        for (int c = 0; c < V; ++c) below[c] = 0;
        float up[V], middle[V], down[V];
        x_above.read([&](int c, float value) { up[c] = value; });
        x_here.read([&](int c, float value) { middle[c] = value; });
        x_below.read([&](int c, float value) { down[c] = value; });
#pragma unroll
        for (int i = 0; i < 3; ++i)
          row.at[i].read([&](int c, float g) {
            above[c] = fmaf(filter[6 + i][c], g, above[c]);
            here[c] = fmaf(filter[3 + i][c], g, here[c]);
            below[c] = fmaf(filter[i][c], g, below[c]);
            // y[r, column - 1 + i] read x[r - 1 + k, column] by the weight [k, 2 - i].
            sums[2 - i][c] = fmaf(up[c], g, sums[2 - i][c]);
            sums[5 - i][c] = fmaf(middle[c], g, sums[5 - i][c]);
            sums[8 - i][c] = fmaf(down[c], g, sums[8 - i][c]);
            if (i == 1 && inside) sums[9][c] += g;
          });
        if (r > place.first && a.d_x) {
          Vector out;
          out.write([&](int c) { return above[c]; });
          static_cast<Vector*>(a.d_x)[start + ((r - 1) * a.width + column) * vectors] = out;
        }
#pragma unroll
        for (int c = 0; c < V; ++c) {
          above[c] = here[c];
          here[c] = below[c];
        }
        x_above = x_here;
        x_here = x_below;
        x_below = x_next;
        x_next = x_after;
        row = next;
      }
    }
  }
  // Columns of a block: first those of one warp, where it has several, then the warps'.
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, channels = lanes * V;
#pragma unroll
  for (int k = 0; k < 10; ++k)
#pragma unroll
    for (int c = 0; c < V; ++c) {
      for (int offset = lanes; offset < 32; offset *= 2) sums[k][c] += __shfl_xor_sync(whole_warp, sums[k][c], offset);
      if (lane < lanes) part[warp][k * channels + lane * V + c] = sums[k][c];
    }
  __syncthreads();
  for (int i = threadIdx.x; i < 10 * channels; i += Depthwise3x3Tuning::threads) {
    const int c = blockIdx.x * channels + i % channels;
    if (c >= a.channels) continue;
    float all = 0;
    for (int w = 0; w < warps; ++w) all += part[w][i];
    a.partial[(int64_t(blockIdx.z) * 10 + i / channels) * a.channels + c] = all;
  }
}

/// Lanes of a block along channels.
inline int depthwise_3x3_lanes(int channels) {
  int lanes = 1;
  while (lanes < 32 && lanes * Depthwise3x3Tuning::vector < channels) lanes *= 2;
  return lanes;
}

inline dim3 depthwise_3x3_grid(int channels, int lanes, int columns, int64_t images, int height) {
  const int chunk = lanes * Depthwise3x3Tuning::vector;
  return dim3((channels + chunk - 1) / chunk, columns, static_cast<unsigned>(images * depthwise_3x3_strips(height)));
}

}  // namespace detail

/// Whether such images are taken.
inline bool depthwise_3x3_takes(int64_t channels, int64_t images, int height, int width) {
  return channels % detail::Depthwise3x3Tuning::vector == 0 && images * depthwise_3x3_strips(height) <= 65535 &&
         width < 1 << 19;
}

/// One launch.
inline cudaError_t depthwise_3x3(const Depthwise3x3& a, cudaStream_t stream) {
  if (a.groups.rows == 0) return cudaSuccess;
  return detail::with_type(a.type, [&]<class T>(T) {
    const int lanes = detail::depthwise_3x3_lanes(a.channels);
    const int columns = detail::Depthwise3x3Tuning::threads / lanes * detail::Depthwise3x3Tuning::columns;
    detail::depthwise_3x3<T><<<detail::depthwise_3x3_grid(a.channels, lanes, (a.width + columns - 1) / columns,
                                                          a.groups.rows, a.height),
                               detail::Depthwise3x3Tuning::threads, 0, stream>>>(a, lanes);
    return cudaGetLastError();
  });
}

/// Two launches.
inline cudaError_t depthwise_3x3_backward(const Depthwise3x3Backward& a, cudaStream_t stream) {
  return detail::with_type(a.type, [&]<class T>(T) {
    const int lanes = detail::depthwise_3x3_lanes(a.channels);
    if (a.groups.rows > 0)
      detail::depthwise_3x3_backward<T>
          <<<detail::depthwise_3x3_grid(a.channels, lanes, 1, a.groups.rows, a.height),
             detail::Depthwise3x3Tuning::threads, 0, stream>>>(a, lanes);
    Groups strips = a.groups;
    strips.each = depthwise_3x3_strips(a.height);
    return detail::add_pieces_of<T>(
        {.groups = strips, .width = 10 * int64_t(a.channels), .partial = a.partial, .sums = a.d_weight}, /*size=*/1, stream);
  });
}

}  // namespace moecod::kernel
