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
  CUtensorMap y;  // of tunings that leave, and of kinds that go through a stage, of which it is a
  // Of those kinds:
  CUtensorMap h;  // gate_backward: read
  CUtensorMap d_h;  // written; gated_kept: h is in its place
};

/// The tile of a block: 128 `Rows` positions, `Channels` channels, for which there are `Columns` blocks of 64, the last of
/// them perhaps not full, and how many steps are in flight. `Leaves`: y goes through shared memory, by TMA, while the workers
/// are at the next tile.
template <int Rows_, int Columns_, int Stages_, int Channels_ = 64 * Columns_, bool Leaves_ = false>
struct ConvTuning {
  static constexpr int rows = Rows_, columns = Columns_, stages = Stages_;
  static constexpr bool leaves = Leaves_;
  static constexpr int warpgroups = 2, threads = 128 * (warpgroups + 1), workers = 128 * warpgroups;
  static constexpr int positions = 128 * rows, channels = Channels_;
  static constexpr uint32_t row_block = 128 * 128, column_block = 64 * 128;  // bytes of 128 positions, 64 channels
  static constexpr uint32_t stage = rows * row_block + columns * column_block;
  static constexpr uint32_t aligned = 1024;
  static constexpr uint32_t dynamic(int experts, uint32_t epilogue) {
    return aligned + stages * stage + epilogue + PieceTable::bytes(experts);
  }
};

/// What a block needs to know beside the maps.
struct ConvWork {
  Groups groups;  // each: positions out
  int in, out;    // channels of x and y
  int column_tiles;
  unsigned band;   // pairs of pieces whose tiles are taken together
  bool by_expert;  // each expert's tiles follow each other
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

/// A block's tile. The two blocks of a cluster have neighbouring pieces and the same channels; or both a piece that has none
/// beside it, and neighbouring channels.
struct ConvTile {
  int begin, rows;    // of the piece
  int expert, index;  // the piece's
  int channel;        // the first
  bool shared;        // the cluster's blocks share the weights' tiles
};

/// n / d of numbers below 2^20, rounded down: a division takes some hundred cycles, and tiles may be short.
__device__ __forceinline__ unsigned quotient(unsigned n, unsigned d) {
  return static_cast<unsigned>(__fdividef(static_cast<float>(n) + 0.5f, static_cast<float>(d)));
}

/// The order in which clusters take tiles, two at a time. Of all pieces, or of each expert's where its weights are large, so that
/// they are read from memory once: the pairs of pieces in bands, and in each all pairs of a column before the next. A piece
/// that is left comes after each two columns of the last band. Where the columns are odd, the second block then computes
/// what nobody stores.
class ConvOrder {
 public:
  __device__ __forceinline__ ConvOrder(const PieceTable& table, const ConvWork& work, int channels)
      : table_(table), work_(work), channels_(channels) {}

  /// Pairs of tiles, in all.
  __device__ __forceinline__ int count() const {
    return work_.by_expert ? first_tile_pair(work_.groups.experts) : tile_pairs_of(table_.pieces(), table_.pieces() % 2);
  }

  /// Of pair `number` the tile of a cluster's block `rank`.
  __device__ __forceinline__ ConvTile operator()(int number, int rank) const {
    int expert = 0, first_piece = 0, pieces = table_.pieces();
    if (work_.by_expert) {
      expert = last_begun(work_.groups.experts, number, [&](int e) { return first_tile_pair(e); });
      first_piece = table_.first[expert];
      pieces = table_.first[expert + 1] - first_piece;
      number -= first_tile_pair(expert);
    }
    const unsigned columns = work_.column_tiles, pairs = pieces / 2;
    unsigned first = number / (work_.band * columns) * work_.band;
    if (first >= pairs && first > 0) first -= work_.band;  // the piece that is left, behind all pairs
    const unsigned in_band = number - first * columns, high = min(work_.band, pairs - first);
    unsigned pair, column;
    bool left = false;
    if (pieces % 2 && first + work_.band >= pairs) {
      const unsigned each = 2 * high + 1, two = quotient(in_band, each), i = in_band - two * each;
      left = i >= min(columns - 2 * two, 2u) * high;
      column = 2 * two + (left ? rank : i >= high);
      pair = i >= high ? i - high : i;
    } else {
      column = quotient(in_band, high);
      pair = in_band - column * high;
    }
    ConvTile tile;
    const int even = first_piece + 2 * static_cast<int>(first + pair);
    tile.index = left ? first_piece + pieces - 1 : even + rank;
    tile.expert = work_.by_expert ? expert : table_.expert_of_piece(tile.index);
    const Piece piece = table_.find(tile.expert, tile.index);
    tile.begin = static_cast<int>(piece.begin);
    tile.rows = column < columns ? static_cast<int>(piece.end - piece.begin) : 0;
    tile.channel = static_cast<int>(column) * channels_;
    tile.shared = !left && even >= piece.first && even + 1 < piece.first + piece.count;
    return tile;
  }

 private:
  /// Pairs of the tiles of pieces, of groups of which so many have an odd number.
  __device__ __forceinline__ int tile_pairs_of(int pieces, int odd) const {
    return static_cast<int>((unsigned(pieces) * work_.column_tiles + (work_.column_tiles % 2 ? odd : 0)) / 2);
  }
  __device__ __forceinline__ int first_tile_pair(int expert) const { return tile_pairs_of(table_.first[expert], table_.odd()[expert]); }

  const PieceTable& table_;
  const ConvWork& work_;
  int channels_;  // of a tile
};

}  // namespace moecod::kernel::detail
