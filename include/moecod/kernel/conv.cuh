#pragma once
#include <algorithm>
#include <array>
#include <tuple>
#include <type_traits>
#include <utility>

#include "moecod/kernel/conv_gate.cuh"
#include "moecod/kernel/gather_tile.cuh"

/// Convolution of images sorted by expert, each with its expert's weights; also the gradient of its input. A linear
/// layer of rows sorted by expert is one of images of one position.
///
/// An implicit matrix product, y [positions, out] = x [positions, taps x in] * weight^T, for compute capability 9.0. A
/// block computes tiles of consecutive positions of one expert (they may go over the images' ends) and `Channels`
/// channels, one after the other. One thread has TMA bring, for each tap and 64 channels in, the positions moved by the
/// tap (im2col mode: what lies outside of an image is zero) and the expert's weights, without a pause between tiles (rows
/// that are not sorted yet come by two warps, gather_tile.cuh); two warpgroups multiply, and finish a tile while the loads
/// of the next arrive. Two blocks form a cluster with the same channels; where their pieces are of one expert, each loads
/// half of the weights for both (a piece without a neighbour: conv_tile.cuh). The gradient of the input is the same with the
/// taps in the opposite order and the weights' tiles read across.
///
/// The epilogue rounds to bfloat16 and takes mean and squares of each channel over the tile, which batch normalisation
/// would else read it again for.
/// Operations: 2 positions taps in out. Bytes: x, weights, y once; the taps' rereads come from L2.
namespace moecod::kernel {

namespace detail {

/// Whether the rows of x are gathered as they are loaded.
template <ConvKind Kind>
__device__ __forceinline__ bool gathers_x(const ConvWork& work) {
  return is_gate(Kind) && work.slots > 0;
}

#if MOECOD_HOPPER_CODE
/// One thread's work: all loads of the block that TMA does. It leaves the tiles in `tiles` for the workers.
template <class Tuning, ConvKind Kind>
__device__ __forceinline__ void conv_load(const ConvMaps& maps, const ConvWork& work, const ConvOrder& order, int rank,
                                          uint8_t* stages, ConvTile* tiles, uint64_t* full, uint64_t* empty) {
  constexpr bool across = reads_across(Kind);
  const bool gathers = gathers_x<Kind>(work);  // then x comes by conv_gather
  const uint32_t bytes = (gathers ? 0 : Tuning::rows * Tuning::row_block) +
                         (across ? Tuning::columns * Tuning::column_block : Tuning::channels * 128);
  const int chunks = (work.in + 63) / 64, steps = chunks * work.taps, count = order.count();
  hopper::Ring<Tuning::stages> ring;
  hopper::Ring<Tuning::stages + 1> slot;
  for (int number = blockIdx.x / 2; number < count; number += gridDim.x / 2) {
    const ConvTile tile = order(number, rank);
    int w[Tuning::rows], h[Tuning::rows], n[Tuning::rows];
    if (!work.rows_alone)
#pragma unroll
      for (int i = 0; i < Tuning::rows; ++i) {
        const int64_t position = int64_t(tile.begin) + 128 * i;
        n[i] = static_cast<int>(position / work.groups.each);
        const int at = static_cast<int>(position % work.groups.each);
        h[i] = at / work.out_width + work.low_down;
        w[i] = at % work.out_width + work.low_right;
      }
    int chunk = 0, tap = 0, right = 0, down = 0;
    for (int step = 0; step < steps; ++step) {
      uint64_t* arrived = &full[ring.stage];
      hopper::barrier_wait(&empty[ring.stage], ring.parity ^ 1);
      if (step == 0) {  // the workers are through with the tile that had the place: all of them have freed a stage since
        tiles[slot.stage] = tile;
        slot.next();
      }
      hopper::barrier_expect(arrived, bytes);
      uint8_t* to = stages + ring.stage * Tuning::stage;
#pragma unroll
      for (int i = 0; i < Tuning::rows; ++i)
        if (gathers)
          continue;
        else if (work.rows_alone)
          hopper::load_box(to + i * Tuning::row_block, maps.x, arrived, 64 * chunk, tile.begin + 128 * i);
        else
          hopper::load_columns(to + i * Tuning::row_block, maps.x, arrived, 64 * chunk, w[i], h[i], n[i], right, down);
      to += Tuning::rows * Tuning::row_block;
      // Halves of the weights' tile: of its columns, or, where they are read across, of its blocks of 64.
      const auto load_half = [&](int half, auto&& load) {
        if constexpr (across) {
#pragma unroll
          for (int i = 0; i < Tuning::columns; ++i)
            if (i < (Tuning::columns + 1) / 2 == (half == 0))
              load(to + i * Tuning::column_block, tile.channel + 64 * i, work.taps - 1 - tap, 64 * chunk, tile.expert);
        } else {
          constexpr int columns = Tuning::channels / 2;
          // Gates come first and then what they gate, the same columns of both.
          const int channel = tile.channel + half * (has_pairs(Kind) ? work.out : columns);
          if constexpr (has_vectors<Tuning>(Kind))
            load(to + half * columns * 128, 64 * chunk, 0, (tile.expert * 2 * work.out + channel) / 8, 0);
          else
            load(to + half * columns * 128, 64 * chunk, tap, channel, tile.expert);
        }
      };
      const auto for_both = [&](void* at, int x0, int x1, int x2, int x3) {
        hopper::load_box_for_both(at, maps.weight, arrived, x0, x1, x2, x3);
      };
      const auto for_this = [&](void* at, int x0, int x1, int x2, int x3) {
        hopper::load_box(at, maps.weight, arrived, x0, x1, x2, x3);
      };
      if (work.clusters && tile.shared) {
        load_half(rank, for_both);
      } else {
        load_half(0, for_this);
        load_half(1, for_this);
      }
      if constexpr (is_gate_backward(Kind) && is_staged<Tuning>(Kind)) {
        // Asks for h ahead of gate_move, whose stage is busy; a few boxes a step, so that the loads do not wait for it.
        constexpr int boxes = 4 * Tuning::columns;
        const int each = (boxes + steps - 1) / steps;
        for (int box = each * step; box < min(each * (step + 1), boxes); ++box)
          hopper::prefetch_box(maps.h, tile.channel + box / 4 * 64, box / 2 % 2, tile.begin + box % 2 * 64);
      }
      // All channels of a tap one after the other, as they lie in the weights.
      if (++chunk == chunks) {
        chunk = 0;
        right += work.right;
        if (++tap % work.taps_right == 0) {
          right = 0;
          down += work.down;
        }
      }
      ring.next();
    }
  }
}

/// The work of one of two warps: the loads of x where its rows are gathered.
template <class Tuning>
__device__ __forceinline__ void conv_gather(const ConvWork& work, const ConvOrder& order, int rank, int warp,
                                            uint8_t* stages, uint64_t* full, uint64_t* empty) {
  constexpr int each = Tuning::positions / 64;  // rows a lane finds
  const int steps = (work.in + 63) / 64, vectors = work.in / 8, count = order.count();
  const auto find = [&](int number, int (&slot)[each]) {
    const ConvTile tile = order(number, rank);
#pragma unroll
    for (int i = 0; i < each; ++i) {  // behind the piece's end what nobody stores
      const int row = 32 * (each * warp + i) + threadIdx.x % 32;
      slot[i] = row < tile.rows ? work.order[tile.begin + row] : 0;
    }
  };
  Gatherer<Tuning::stages, 32 * each> gatherer(warp, full, empty);
  int slot[each] = {};
  int number = blockIdx.x / 2;
  if (number < count) find(number, slot);
  while (number < count) {
    uint32_t source[each];
#pragma unroll
    for (int i = 0; i < each; ++i) source[i] = static_cast<uint32_t>(slot[i] / work.slots * vectors);
    gatherer.set_rows(work.x, source);
    number += gridDim.x / 2;
    if (number < count) find(number, slot);  // ahead: they come while this tile's rows do
    for (int step = 0; step < steps; ++step) {
      uint8_t* to = stages + gatherer.begin() * Tuning::stage;
      gatherer.copy(to, vectors - 8 * step);
      gatherer.move_on();
      gatherer.end();
    }
  }
  gatherer.finish();
}
#endif

/// Shared memory of the epilogue.
template <class Tuning, ConvKind Kind>
__host__ __device__ constexpr uint32_t epilogue_bytes(bool moments) {
  if constexpr (is_staged<Tuning>(Kind)) return GateStage<Tuning, Kind>::bytes;
  if constexpr (Tuning::leaves) return Tuning::workers / 32 * Tuning::columns * warp_block;
  return moments ? MomentStage<Tuning>::bytes : 0;
}

template <class Tuning, ConvKind Kind>
__global__ void __launch_bounds__(Tuning::threads, 1)
    conv(const __grid_constant__ ConvMaps maps, const ConvWork work) {
#if MOECOD_HOPPER_CODE
  constexpr bool across = reads_across(Kind);
  constexpr int channels = has_pairs(Kind) ? Tuning::channels / 2 : Tuning::channels;  // of y
  extern __shared__ uint8_t raw[];
  __shared__ uint64_t full[Tuning::stages], empty[Tuning::stages];
  __shared__ ConvTile tiles[Tuning::stages + 1];  // one more than those whose first step a stage may hold
  [[maybe_unused]] __shared__ GateBarriers gate;
  uint8_t* stages = raw + (Tuning::aligned - hopper::shared_address(raw) % Tuning::aligned) % Tuning::aligned;
  uint8_t* rest = stages + Tuning::stages * Tuning::stage;  // what the epilogue needs, and the table
  const PieceTable table{{reinterpret_cast<int32_t*>(rest + epilogue_bytes<Tuning, Kind>(work.moments)), work.groups,
                         Tuning::positions}};
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, rank = static_cast<int>(blockIdx.x % 2);
  if (warp == 0) table.fill();
  if (threadIdx.x == 32) {
    for (int i = 0; i < Tuning::stages; ++i) {
      hopper::barrier_init(&full[i], gathers_x<Kind>(work) ? 1 + gather_arrivals : 1);
      hopper::barrier_init(&empty[i], (work.clusters ? 2 : 1) * Tuning::workers / 32);
    }
    if constexpr (is_staged<Tuning>(Kind)) {
      for (int i = 0; i < GateBarriers::blocks; ++i) {
        hopper::barrier_init(&gate.ready[i], 1);
        hopper::barrier_init(&gate.staged[i], Tuning::workers / 32);
      }
    }
    hopper::barrier_init_done();
  }
  __syncwarp();
  hopper::cluster_barrier();
  const ConvOrder order(table, work, channels);
  if (warp >= Tuning::workers / 32) {
    hopper::fewer_registers<56>();
    if (warp == Tuning::workers / 32 && lane == 0)
      conv_load<Tuning, Kind>(maps, work, order, rank, stages, tiles, full, empty);
    if constexpr (is_staged<Tuning>(Kind))
      if (warp == Tuning::workers / 32 + 1 && lane == 0)
        gate_move<Tuning, Kind>(maps, order, rank, rest, gate);
    if (const int gatherer = warp - Tuning::workers / 32 - 2; gathers_x<Kind>(work) && gatherer >= 0)
      conv_gather<Tuning>(work, order, rank, gatherer, stages, full, empty);
  } else {
    hopper::more_registers<224>();
    const int warpgroup = warp / 4, steps = (work.in + 63) / 64 * work.taps;
    // A stage is free once the workers of both blocks have read it, since either block's loads may write both.
    const auto release = [&](int stage) {
      if (lane < (work.clusters ? 2 : 1)) hopper::barrier_arrive(&empty[stage], lane);
    };
    float sums[Tuning::rows][32 * Tuning::columns] = {};
    hopper::Ring<Tuning::stages> ring;
    [[maybe_unused]] uint32_t turn = 0;
    const int count = order.count();
    hopper::Ring<Tuning::stages + 1> slot;
    for (int number = blockIdx.x / 2; number < count; number += gridDim.x / 2, slot.next()) {
      [[maybe_unused]] GateBackward<Kind> backward;
      if constexpr (Kind == ConvKind::gate_backward_weighted) {
        hopper::barrier_wait(&full[ring.stage], ring.parity);
        backward.start(work, tiles[slot.stage]);
      }
#pragma unroll
      for (int i = 0; i < Tuning::rows; ++i) hopper::settle(sums[i]);
      int before = 0;
      for (int step = 0; step < steps; ++step) {
        hopper::barrier_wait(&full[ring.stage], ring.parity);
        if (gathers_x<Kind>(work)) hopper::publish_stores();
        const uint32_t at = hopper::shared_address(stages) + ring.stage * Tuning::stage;
        const uint32_t x = at + warpgroup * Tuning::rows * Tuning::row_block / 2;
        const uint32_t weight = at + Tuning::rows * Tuning::row_block;
        hopper::multiply_begin();
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          const uint64_t b =
              across ? hopper::across_k(weight + 2048 * k, Tuning::column_block) : hopper::along_k(weight + 32 * k);
#pragma unroll
          for (int i = 0; i < Tuning::rows; ++i)
            hopper::multiply<Tuning::channels, false, across>(
                sums[i], hopper::along_k(x + i * Tuning::row_block / 2 + 32 * k), b, Tuning::column_block,
                step + k > 0);
        }
        hopper::multiply_commit();
        hopper::multiply_wait<1>();
        if (step > 0) release(before);
        before = ring.stage;
        ring.next();
      }
      // Long gates need their registers.
      std::conditional_t<is_gate(Kind) && !is_staged<Tuning>(Kind), const ConvTile&, const ConvTile> tile = tiles[slot.stage];
      [[maybe_unused]] GateOperands<Tuning> operands{work, tile};
      if constexpr (is_gate_backward(Kind) && !is_staged<Tuning>(Kind)) operands.start();
      hopper::multiply_wait<0>();
#pragma unroll
      for (int i = 0; i < Tuning::rows; ++i) hopper::settle(sums[i]);
      release(before);
      if constexpr (is_staged<Tuning>(Kind))
        gate_finish<Tuning, Kind>(work, tile, sums, rest, gate, turn++ & 1, backward);
      else if constexpr (Kind == ConvKind::gated_kept)
        gate_finish_kept<Tuning>(work, tile, sums);
      else if constexpr (is_gate_backward(Kind))
        gate_finish_backward<Tuning, Kind>(sums, operands, backward);
      else if constexpr (Tuning::leaves)
        conv_leave<Tuning>(maps.y, work, tile, sums[0], rest);
      else
        conv_finish<Tuning, Kind>(work, tile, sums, rest);
    }
    if constexpr (Tuning::leaves) hopper::stores_read();
  }
  __syncwarp();
  hopper::cluster_barrier();  // the other block's last arrivals are in this one's shared memory
#endif
}

/// Whether blocks run in clusters that share the weights' tiles. They wait for each other, which does not pay where each has
/// one tile.
inline bool in_clusters(int64_t tile_pairs, int processors) { return tile_pairs > processors / 2; }

/// What a tile costs a convolution: turns of the device, times the cycles of a step: of its products, or of its bytes,
/// of which 40 a cycle come from L2; and a 256th of these in any case, which chooses between tiles that are as good: larger
/// ones ran longer without slowing the device (P7 in docs/performance.md).
template <class Tuning>
int64_t conv_cost(const Groups& groups, int channels, int processors) {
  const int64_t pairs = (groups.pieces(Tuning::positions) + 1) / 2, at_once = std::max(processors / 2, 1);
  const int64_t tile_pairs = pairs * ((channels + Tuning::channels - 1) / Tuning::channels);
  const int64_t weights = Tuning::channels * 128 / (in_clusters(tile_pairs, processors) ? 2 : 1);
  const int64_t bytes = Tuning::rows * Tuning::row_block + weights;
  const int64_t step = std::max<int64_t>(bytes / 40, 4 * Tuning::rows * Tuning::channels) + bytes / 256;
  return (tile_pairs + at_once - 1) / at_once * step;
}

/// The tile of linear layers, and with a stage less and y in its place.
using WideTile = ConvTuning<1, 4, 4>;
using WideTileLeaving = ConvTuning<1, 4, 3, 256, true>;

/// Calls f with the tile for a convolution to so many channels, the cheapest.
template <class F>
auto with_conv_tuning(const Groups& groups, int channels, F&& f) {
  using Tunings = std::tuple<ConvTuning<2, 1, 5>, ConvTuning<2, 2, 4>, ConvTuning<1, 3, 5, 176>, ConvTuning<1, 3, 5>,
                             WideTile, ConvTuning<1, 5, 3>>;
  int processors = 0;
  if (multiprocessors(&processors) != cudaSuccess) processors = 1;
  return [&]<std::size_t... I>(std::index_sequence<I...>) {
    const std::array cost{conv_cost<std::tuple_element_t<I, Tunings>>(groups, channels, processors)...};
    const auto best = static_cast<std::size_t>(std::min_element(cost.begin(), cost.end()) - cost.begin());
    decltype(f(std::tuple_element_t<0, Tunings>{})) result{};
    ((best == I && (result = f(std::tuple_element_t<I, Tunings>{}), true)) || ...);
    return result;
  }(std::make_index_sequence<std::tuple_size_v<Tunings>>{});
}

/// Positions of an image of y.
inline int64_t conv_positions(const Conv& a) {
  const ConvShape& s = a.shape;
  return a.transposed ? int64_t(s.height) * s.width : int64_t(s.out_height()) * s.out_width();
}

/// A convolution by a given tile.
template <class Tuning, ConvKind Kind>
cudaError_t launch_conv(const Conv& a, cudaStream_t stream) {
  static_assert(!is_gate(Kind) || (Tuning::rows == 1 && Tuning::channels == 64 * Tuning::columns),
                "an epilogue with a gate finishes 64 rows a warpgroup and whole blocks of 64 channels");
  static_assert(!has_pairs(Kind) || Tuning::columns % 2 == 0, "as many columns of gates as of what they gate");
  const ConvShape& s = a.shape;
  ConvWork work{};
  work.groups = a.groups;
  work.groups.each = conv_positions(a);
  work.in = a.transposed ? s.out : s.in;
  work.out = a.transposed ? s.in : has_pairs(Kind) ? s.out / 2 : s.out;
  work.taps = s.taps();
  work.taps_right = s.kernel[1];
  work.right = s.dilation[1];
  work.down = s.dilation[0];
  work.out_width = a.transposed ? s.width : s.out_width();
  work.rows_alone = s.taps() == 1;
  work.y = static_cast<__nv_bfloat16*>(is_gate_backward(Kind) ? a.a : a.y);
  work.h = static_cast<__nv_bfloat16*>(is_gate_backward(Kind) ? a.y : a.h);
  work.kept = is_gate_backward(Kind) ? static_cast<const __nv_bfloat16*>(a.h) : nullptr;
  work.weights = a.weights;
  work.order = a.order;
  work.slots = a.slots;
  work.x = a.x;
  work.partial = a.partial;
  work.moments = a.moments;
  int lower[2], upper[2];
  for (int i = 0; i < 2; ++i) {
    const int reach = s.dilation[i] * (s.kernel[i] - 1), padding = a.transposed ? reach - s.padding[i] : s.padding[i];
    lower[i] = -padding;
    upper[i] = padding - reach;
  }
  work.low_down = lower[0];
  work.low_right = lower[1];
  if (const cudaError_t error = hopper::bind_context()) return error;
  ConvMaps maps;
  if (const cudaError_t error =
          work.rows_alone
              ? hopper::tiled_map<2>(&maps.x, a.x, {uint64_t(work.in), uint64_t(a.slots ? 1 : work.groups.items())}, {64, 128})
              : hopper::columns_map(&maps.x, a.x, a.groups.rows, a.transposed ? s.out_height() : s.height,
                                    a.transposed ? s.out_width() : s.width, work.in, lower, upper, 128))
    return error;
  const uint64_t in = s.in, out = s.out, experts = a.groups.experts;
  if (const cudaError_t error =
          has_vectors<Tuning>(Kind)
              ? hopper::tiled_map<4>(&maps.weight, a.weight, {in, 2, experts * out / 8, 4}, {64, 2, Tuning::channels / 16u, 4},
                                     {in, 8 * in, 2 * in})
              : hopper::tiled_map<4>(&maps.weight, a.weight, {in, uint64_t(s.taps()), out, experts},
                                     {64, 1, a.transposed ? 64u : Tuning::channels / 2u, 1}))
    return error;
  const auto matrix = [&](CUtensorMap* map, const void* data, uint64_t parts, uint32_t rows) {
    return hopper::tiled_map<3>(map, data, {uint64_t(work.out), parts, uint64_t(work.groups.items())}, {64, 1, rows});
  };
  if constexpr (Tuning::leaves) {
    if (a.moments) return cudaErrorInvalidValue;
    if (const cudaError_t error = matrix(&maps.y, work.y, 1, 16)) return error;
  }
  if constexpr (is_staged<Tuning>(Kind)) {
    if (const cudaError_t error = matrix(&maps.y, work.y, 1, 64)) return error;
    if (Kind != ConvKind::gated)
      if (const cudaError_t error = matrix(&maps.d_h, work.h, 2, 64)) return error;
    if (is_gate_backward(Kind))
      if (const cudaError_t error = matrix(&maps.h, a.h, 2, 64)) return error;
  }
  int processors = 0;
  if (const cudaError_t error = multiprocessors(&processors)) return error;
  constexpr uint32_t barriers = 2 * Tuning::stages * sizeof(uint64_t) + sizeof(GateBarriers);
  static_assert(Tuning::dynamic(max_experts, epilogue_bytes<Tuning, Kind>(Kind == ConvKind::plain)) + barriers +
                    (Tuning::stages + 1) * sizeof(ConvTile) <= hopper::shared_memory);
  const auto kernel = conv<Tuning, Kind>;
  const uint32_t dynamic = Tuning::dynamic(a.groups.experts, epilogue_bytes<Tuning, Kind>(a.moments));
  if (const cudaError_t error = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                                     cudaFuncAttributeMaxDynamicSharedMemorySize, dynamic))
    return error;
  const int channels = has_pairs(Kind) ? Tuning::channels / 2 : Tuning::channels;
  work.column_tiles = (work.out + channels - 1) / channels;
  // Weights that fit into L2 beside what streams through are read for every pair, so that whole rows of y are written
  // together; of larger ones a band of pairs shares what it reads. Of rows alone, which leave odd pieces to more experts
  // than images do, they are also taken expert by expert.
  const bool large = int64_t(s.in) * s.out * s.taps() > 1 << 20;
  work.band = large ? 8 : 1;
  work.by_expert = large && work.rows_alone;
  const int64_t tile_pairs = (work.groups.pieces(Tuning::positions) + 1) / 2 * work.column_tiles;  // about
  work.clusters = in_clusters(tile_pairs, processors);
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {2, 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = static_cast<unsigned>(2 * std::min<int64_t>(tile_pairs, processors / 2));
  config.blockDim = Tuning::threads;
  config.dynamicSmemBytes = dynamic;
  config.stream = stream;
  config.attrs = &cluster;
  config.numAttrs = work.clusters ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, maps, work);
}

}  // namespace detail

/// Whether conv and conv_weight take the shape, of at most max_experts, on this device.
inline bool conv_takes(const ConvShape& s) {
  constexpr int widest = 65536;  // conv_weight packs a channel into 16 bits
  bool takes = s.in % 8 == 0 && s.out % 8 == 0 && s.in > 0 && s.out > 0 && s.in <= widest && s.out_height() > 0 && s.out_width() > 0;
  for (int i = 0; i < 2; ++i) {
    const int reach = s.dilation[i] * (s.kernel[i] - 1);
    takes = takes && reach <= 127 && s.padding[i] >= 0 && s.padding[i] <= reach;  // what a map's corners can say
  }
  return takes && hopper::is_hopper();
}

/// Positions over which Conv::moments are taken, of y with so many channels; groups.each: positions of an image of y.
inline int conv_piece(const Groups& groups, int channels) {
  return detail::with_conv_tuning(groups, channels, [](auto tuning) { return decltype(tuning)::positions; });
}

namespace detail {

/// The tiles of kinds with a gate, by the length of the products' sums. LongGate: long ones, from registers, and `gated` of any
/// length, whose stage holds a alone. Short ones: in the backward pass, and where h is kept, with a stage of g, u and a.
using LongGate = ConvTuning<1, 4, 4>;
using ShortGateBack = ConvTuning<1, 2, 4>;
using ShortGateKept = ConvTuning<1, 2, 5>;
inline bool has_long_sums(const Conv& a) { return (a.transposed ? a.shape.out : a.shape.in) > 1024; }

template <class Tuning>
cudaError_t launch_plain(const Conv& a, cudaStream_t stream) {
  return a.transposed ? launch_conv<Tuning, ConvKind::transposed>(a, stream) : launch_conv<Tuning, ConvKind::plain>(a, stream);
}

template <ConvKind Kind>
cudaError_t launch_gate_backward(const Conv& a, cudaStream_t stream) {
  return has_long_sums(a) ? launch_conv<LongGate, Kind>(a, stream) : launch_conv<ShortGateBack, Kind>(a, stream);
}

}  // namespace detail

/// Parts of the gradients of weights: Conv::partial has so many numbers a row.
inline int conv_gate_parts(const Conv& a) {
  const int channels = detail::has_long_sums(a) ? detail::LongGate::channels : detail::ShortGateBack::channels;
  return (a.shape.in + channels - 1) / channels;
}

/// One launch; for gradients of weights two.
inline cudaError_t conv(const Conv& a, cudaStream_t stream) {
  if ((a.slots && !a.gated) || (a.gated && a.shape.taps() > 1)) return cudaErrorInvalidValue;
  if (a.groups.rows == 0) return cudaSuccess;
  using namespace detail;
  if (a.gated && a.transposed && !a.weights) return launch_gate_backward<ConvKind::gate_backward>(a, stream);
  if (a.gated && a.transposed) {
    const cudaError_t error = launch_gate_backward<ConvKind::gate_backward_weighted>(a, stream);
    if (error || !a.partial) return error;
    const int64_t rows = a.groups.items();
    add_weight_parts<<<static_cast<unsigned>((rows + 255) / 256), 256, 0, stream>>>(a.partial, conv_gate_parts(a), rows,
                                                                                   a.order, a.d_weights);
    return cudaGetLastError();
  }
  if (a.gated && a.h)
    return has_long_sums(a) ? launch_conv<LongGate, ConvKind::gated_kept>(a, stream)
                            : launch_conv<ShortGateKept, ConvKind::gated_kept>(a, stream);
  if (a.gated) return launch_conv<LongGate, ConvKind::gated>(a, stream);
  Groups out = a.groups;
  out.each = conv_positions(a);
  return with_conv_tuning(out, a.transposed ? a.shape.in : a.shape.out, [&](auto tuning) {
    using Tuning = decltype(tuning);
    if constexpr (std::is_same_v<Tuning, WideTile>)
      if (a.shape.taps() == 1 && !a.moments) return launch_plain<WideTileLeaving>(a, stream);
    return launch_plain<Tuning>(a, stream);
  });
}

}  // namespace moecod::kernel
