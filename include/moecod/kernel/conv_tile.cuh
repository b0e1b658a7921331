#pragma once
#include "moecod/kernel/hopper.cuh"
#include "moecod/kernel/piece_table.cuh"

/// The tiles of a grouped convolution: their sizes, their order, and which experts they belong to.
namespace moecod::kernel::detail {

/// What becomes of the sums: y; the same with the weights' tiles read across; with columns in pairs, silu(first) *
/// second, alone or with its operands; or, read across, what the gate's backward pass makes of them, for rows that count
/// as they are or by weights that learn.
enum class ConvKind { plain, transposed, gated, gated_kept, gate_backward, gate_backward_weighted };

MOECOD_HOST_DEVICE constexpr bool is_gate_backward(ConvKind kind) {
  return kind == ConvKind::gate_backward || kind == ConvKind::gate_backward_weighted;
}

MOECOD_HOST_DEVICE constexpr bool reads_across(ConvKind kind) {
  return kind == ConvKind::transposed || is_gate_backward(kind);
}
MOECOD_HOST_DEVICE constexpr bool has_pairs(ConvKind kind) {
  return kind == ConvKind::gated || kind == ConvKind::gated_kept;
}

struct ConvMaps {
  CUtensorMap x, weight;
  // Of kinds that go through a stage:
  CUtensorMap h;       // gate_backward: read
  CUtensorMap d_h, a;  // written; gated_kept: h is in the place of d_h
};

/// The tile of a block: 128 `Rows` positions, `Channels` channels, for which there are `Columns` blocks of 64, the last of
/// them perhaps not full, and how many steps are in flight.
template <int Rows_, int Columns_, int Stages_, int Channels_ = 64 * Columns_>
struct ConvTuning {
  static constexpr int rows = Rows_, columns = Columns_, stages = Stages_;
  static constexpr int warpgroups = 2, threads = 128 * (warpgroups + 1), workers = 128 * warpgroups;
  static constexpr int positions = 128 * rows, channels = Channels_;
  static constexpr uint32_t row_block = 128 * 128, column_block = 64 * 128;  // bytes of 128 positions, 64 channels
  static constexpr uint32_t stage = rows * row_block + columns * column_block;
  static constexpr uint32_t aligned = 1024;
  static uint32_t dynamic(int experts, uint32_t epilogue) {
    return aligned + stages * stage + epilogue + (experts + 1) * 4;
  }
};

/// What a block needs to know beside the maps.
struct ConvWork {
  Groups groups;  // each: positions out
  int in, out;    // channels of x and y
  int column_tiles;
  int band;  // pairs of pieces whose tiles are taken together
  int taps_right, taps, right, down;  // taps in a row, in all; dilation
  int low_right, low_down;            // where the first tap of the first position lies
  int out_width;
  bool clusters;    // pairs of blocks are launched as clusters
  bool rows_alone;  // positions are rows of a matrix, and x's map is one
  __nv_bfloat16* y;  // with a gate: a
  __nv_bfloat16* h;  // gated_kept: h; gate_backward: d_h
  const __nv_bfloat16* kept;  // gate_backward: h
  const float* weights;       // gate_backward_weighted: of slots
  const int32_t* order;       // gate_backward_weighted, or with slots: each row's slot
  int slots;                  // kinds with a gate: x's rows are gathered, the one of order / slots each; 0: they are sorted
  const void* x;              // with slots
  float* partial;             // gate_backward_weighted: the weights' gradients of each column of tiles, or null
  float* moments;
};

/// A block's tile. The two blocks of a cluster have the same channels and neighbouring pieces.
struct ConvTile {
  Piece piece;
  int index;    // of the piece
  int channel;  // the first
  bool shared;  // the cluster's pieces are of one expert, so that its blocks share the weights' tiles
  __device__ int rows() const { return static_cast<int>(piece.end - piece.begin); }
};

/// Tile `number` of a cluster's block `rank`: band after band, in each all pairs of a column before the next. Where the
/// last pair lacks its second piece, that block computes what nobody stores.
__device__ __forceinline__ ConvTile conv_tile(const PieceTable& table, const ConvWork& work, int channels, int number,
                                              int rank) {
  const int pieces = table.pieces(), pairs = (pieces + 1) / 2;
  const int first = number / (work.band * work.column_tiles) * work.band, in_band = number - first * work.column_tiles;
  const int high = min(work.band, pairs - first), pair = first + in_band % high;
  ConvTile tile;
  tile.channel = in_band / high * channels;
  tile.index = 2 * pair + rank;
  const bool lone = 2 * pair + 1 == pieces;
  tile.piece = table.find(lone ? 2 * pair : tile.index);
  if (lone && rank == 1) tile.piece.end = tile.piece.begin;
  const int64_t last = tile.piece.first + tile.piece.count;
  tile.shared = lone || (2 * pair >= tile.piece.first && 2 * pair + 1 < last);
  return tile;
}

}  // namespace moecod::kernel::detail
