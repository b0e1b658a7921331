#pragma once
#include "moecod/kernel/activation.cuh"
#include "moecod/kernel/columns.cuh"
#include "moecod/kernel/pieces.hpp"

/// Depthwise convolutions by 3x3 filters at stride 1 with padding 1, what transformers with convolutional feed-forward
/// layers have most of. (depthwise.cuh takes every filter.)
///
/// A thread holds the filters of four channels and walks down a column of a strip of rows. Of each row it fetches three
/// neighbours, which give to the three outputs above, beside and below, so no row is read twice; the neighbours meet in
/// the first cache, as a block's warps lie side by side. Bias and GELU are part of the pass. So is, in the backward pass, the
/// derivative of GELU at the result computed anew, which therefore nobody keeps.
///
/// Backward, the same walk down the gradient gives to the three rows of d_x around it and, times the three rows of x, to
/// all nine weights: each of both is read once. Weights are summed over a strip, strips in their order: no atomics.
/// Bytes: forward x in, y out; backward the same with grad (through GELU), then grad and x in, d_x out.
namespace moecod::kernel {

namespace detail {

struct Depthwise3x3Tuning {
  static constexpr int threads = 256, vector = 4;
  static constexpr int warps = threads / 32;
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

/// The pixels left of, at, and right of a column in one row; zero outside of the image.
template <class T>
struct RowOfThree {
  using Vector = Pack<T, Depthwise3x3Tuning::vector>;
  Vector at[3];
  __device__ __forceinline__ void read(const Vector* image, int row, int column, int height, int width, int vectors) {
#pragma unroll
    for (int i = 0; i < 3; ++i) {
      const int from = column - 1 + i;
      at[i] = Vector{};
      if (row >= 0 && row < height && from >= 0 && from < width)
        at[i] = image[(int64_t(row) * width + from) * vectors];
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
  constexpr int V = Depthwise3x3Tuning::vector;
  using Vector = Pack<T, V>;
  const int strips = depthwise_3x3_strips(a.height), image = blockIdx.z / strips;
  const Depthwise3x3Place place(a.channels, a.height, lanes, blockIdx.z % strips);
  const int column = blockIdx.y * place.columns + place.column, vectors = place.vectors;
  if (!place.live || column >= a.width) return;
  const int expert = expert_of(a.groups.offsets, a.groups.experts, image);
  float filter[9][V], bias[V] = {};
  read_filter<T>(a.weight, expert, vectors, place.v, a.transposed, filter);
  if (a.bias)
    static_cast<const Vector*>(a.bias)[int64_t(expert) * vectors + place.v].read([&](int c, float b) { bias[c] = b; });
  const int64_t start = int64_t(image) * a.height * a.width * vectors + place.v;
  const Vector* x = static_cast<const Vector*>(a.x) + start;
  float above[V] = {}, here[V], below[V];
#pragma unroll
  for (int c = 0; c < V; ++c) here[c] = bias[c];
  RowOfThree<T> row, next;
  row.read(x, place.first - 1, column, a.height, a.width, vectors);
  for (int r = place.first - 1; r <= place.end; ++r) {
    if (r < place.end) next.read(x, r + 1, column, a.height, a.width, vectors);
#pragma unroll
    for (int c = 0; c < V; ++c) below[c] = bias[c];
#pragma unroll
    for (int i = 0; i < 3; ++i)
      row.at[i].read([&](int c, float in) {
        above[c] = fmaf(filter[6 + i][c], in, above[c]);
        here[c] = fmaf(filter[3 + i][c], in, here[c]);
        below[c] = fmaf(filter[i][c], in, below[c]);
      });
    if (r > place.first) {  // the row above has all of its three
      const int64_t to = start + (int64_t(r - 1) * a.width + column) * vectors;
      Vector out;
      out.write([&](int c) { return above[c]; });  // rounds, as if h had been stored
      if (a.gelu) {
        float d[V] = {};
        if (a.grad) static_cast<const Vector*>(a.grad)[to].read([&](int c, float g) { d[c] = g; });
        out.read([&](int c, float h) {
          float value, d_h, none;
          Gelu::backward(d[c], h, 0, value, d_h, none);
          above[c] = a.grad ? d_h : value;
        });
        out.write([&](int c) { return above[c]; });
      }
      static_cast<Vector*>(a.y)[to] = out;
    }
#pragma unroll
    for (int c = 0; c < V; ++c) {
      above[c] = here[c];
      here[c] = below[c];
    }
    row = next;
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
        return r >= place.first && r < place.end ? x[(int64_t(r) * a.width + column) * vectors] : Vector{};
      };
      float above[V] = {}, here[V] = {}, below[V];
      Vector x_above{}, x_here{}, x_below = read_x(place.first);
      RowOfThree<T> row;
      for (int r = place.first - 1; r <= place.end; ++r) {
        row.read(grad, r, column, a.height, a.width, vectors);
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
          static_cast<Vector*>(a.d_x)[start + (int64_t(r - 1) * a.width + column) * vectors] = out;
        }
#pragma unroll
        for (int c = 0; c < V; ++c) {
          above[c] = here[c];
          here[c] = below[c];
        }
        x_above = x_here;
        x_here = x_below;
        x_below = read_x(r + 2);
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
inline bool depthwise_3x3_takes(int64_t channels, int64_t images, int height) {
  return channels % detail::Depthwise3x3Tuning::vector == 0 && images * depthwise_3x3_strips(height) <= 65535;
}

/// One launch.
inline cudaError_t depthwise_3x3(const Depthwise3x3& a, cudaStream_t stream) {
  if (a.groups.rows == 0) return cudaSuccess;
  return detail::with_type(a.type, [&]<class T>(T) {
    const int lanes = detail::depthwise_3x3_lanes(a.channels), columns = detail::Depthwise3x3Tuning::threads / lanes;
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
