#pragma once
#include <algorithm>
#include <array>
#include <cmath>
#include <numbers>

#include "moecod/post/filter/features.hpp"

namespace moecod::post::filter {

/// An approximate Gaussian filter of N points in O(N): values are splatted onto the vertices of a permutohedral lattice
/// around each point, blurred from vertex to vertex, and read back where the points are.
///
/// The lattice lies in the plane sum(y) = 0 of R^(D+1): all integer vectors whose entries are equal modulo D+1. A point
/// goes to y = (D+1) sqrt(2/3) B f with B orthonormal. The weights of the D+1 vertices of its simplex are barycentric,
/// and one blur takes 1/4, 1/2, 1/4 along each of the D+1 directions; with that scale the variances of splat, blur and
/// slice add up to 1 on average. `apply` multiplies by sqrt(D+1) (4 pi / 3)^(D/2), so that it approximates
/// sum_j exp(-|f_i - f_j|^2 / 2) v_j itself; see docs/post.md for how well.
///
/// Two choices differ from the published filter. B sends the first features (x and y of a picture) along differences of
/// two coordinates each, (1, -1, 0, ...), (0, 0, 1, -1, 0, ...), so that a mirrored picture is the same lattice with two
/// coordinates exchanged. Directions are blurred two at a time with nine taps, which commutes with that exchange and
/// passes values between vertices where the vertex in between is empty. So mirrored points give mirrored results, which
/// no lattice in a general position does.
///
/// Vertices without a point are not stored and count as zero. Values are held in single precision.
/// Errors: std::invalid_argument for a feature that is not finite or is beyond 1e6 deviations, for another number of
/// values than points.
/// Source: Adams, Baek and Davis 2010, Fast high-dimensional filtering using the permutohedral lattice.
template <std::size_t D>
class Permutohedral {
 public:
  explicit Permutohedral(const std::vector<Feature<D>>& points) : entries_(points.size()) {
    Table table;
    const auto basis = make_basis();
    for (std::size_t i = 0; i < points.size(); ++i) splat_weights(points[i], basis, table, entries_[i]);
    find_neighbours(table);
    vertices_ = table.keys.size();
  }

  std::size_t size() const { return entries_.size(); }

  std::vector<double> apply(const std::vector<double>& values) const {
    post::detail::check_values("Permutohedral", size(), values.size());
    std::vector<float> now(vertices_, 0.0F), next(vertices_);
    for (std::size_t i = 0; i < size(); ++i)
      for (const Entry& entry : entries_[i]) now[entry.vertex] += entry.weight * float(values[i]);
    now[0] = 0;
    for (const auto& pair : neighbours_) {
      next[0] = 0;
      for (std::size_t v = 1; v < vertices_; ++v) {
        const std::array<uint32_t, 8>& n = pair[v];
        next[v] = 0.25F * now[v] + 0.125F * ((now[n[0]] + now[n[1]]) + (now[n[2]] + now[n[3]])) +
                  0.0625F * ((now[n[4]] + now[n[5]]) + (now[n[6]] + now[n[7]]));
      }
      now.swap(next);
    }
    if constexpr (C % 2 == 1) {
      next[0] = 0;
      for (std::size_t v = 1; v < vertices_; ++v)
        next[v] = 0.5F * now[v] + 0.25F * (now[single_[v][0]] + now[single_[v][1]]);
      now.swap(next);
    }
    static const double gain = std::sqrt(double(C)) * std::pow(4 * std::numbers::pi / 3, 0.5 * double(D));
    std::vector<double> out(size());
    for (std::size_t i = 0; i < size(); ++i) {
      double sum = 0;
      for (const Entry& entry : entries_[i]) sum += double(entry.weight) * double(now[entry.vertex]);
      out[i] = gain * sum;
    }
    return out;
  }

 private:
  static constexpr std::size_t C = D + 1;  // coordinates of the plane's space, and directions
  static constexpr std::size_t pairs = C / 2;
  using Key = std::array<int32_t, D>;  // the last coordinate follows from the sum

  struct Entry {
    uint32_t vertex = 0;
    float weight = 0;
  };

  /// Vertices by key: open addressing. Vertex 0 is the empty one and is never found by a key.
  struct Table {
    std::vector<Key> keys{Key{}};
    std::vector<uint32_t> slots = std::vector<uint32_t>(1 << 12, 0);

    static std::size_t hash(const Key& key) {
      uint64_t h = 0, factor = 0x9E3779B97F4A7C15ULL;
      for (const int32_t k : key) h += uint64_t(k) * factor, factor *= 0xD6E8FEB86659FD93ULL;
      return std::size_t(h >> 32);
    }
    static bool same(const Key& a, const Key& b) {
      int32_t difference = 0;
      for (std::size_t d = 0; d < D; ++d) difference |= a[d] ^ b[d];
      return difference == 0;
    }
    std::size_t slot_of(const Key& key) const {
      std::size_t slot = hash(key) & (slots.size() - 1);
      while (slots[slot] != 0 && !same(keys[slots[slot]], key)) slot = (slot + 1) & (slots.size() - 1);
      return slot;
    }
    uint32_t find(const Key& key) const { return slots[slot_of(key)]; }
    uint32_t insert(const Key& key) {
      std::size_t slot = slot_of(key);
      if (slots[slot] != 0) return slots[slot];
      if (2 * keys.size() >= slots.size()) {
        slots.assign(2 * slots.size(), 0);
        for (std::size_t v = 1; v < keys.size(); ++v) slots[slot_of(keys[v])] = uint32_t(v);
        slot = slot_of(key);
      }
      slots[slot] = uint32_t(keys.size());
      keys.push_back(key);
      return slots[slot];
    }
  };

  /// D orthonormal rows in the plane: differences within each pair of coordinates, then contrasts between the pairs
  /// (and the coordinate that is left over), times the scale.
  static std::array<std::array<double, C>, D> make_basis() {
    std::array<std::array<double, C>, D> rows{};
    std::size_t row = 0;
    for (std::size_t p = 0; p < pairs; ++p, ++row) rows[row][2 * p] = 1, rows[row][2 * p + 1] = -1;
    for (std::size_t before = 2; before < C; before += 2, ++row) {
      const std::size_t size = std::min<std::size_t>(2, C - before);
      for (std::size_t i = 0; i < before; ++i) rows[row][i] = 1.0 / double(before);
      for (std::size_t i = before; i < before + size; ++i) rows[row][i] = -1.0 / double(size);
    }
    for (auto& r : rows) {
      double squares = 0;
      for (const double x : r) squares += x * x;
      for (double& x : r) x *= double(C) * std::sqrt(2.0 / 3.0) / std::sqrt(squares);
    }
    return rows;
  }

  static void splat_weights(const Feature<D>& f, const std::array<std::array<double, C>, D>& basis, Table& table,
                            std::array<Entry, C>& entries) {
    std::array<double, C> y{};
    for (std::size_t d = 0; d < D; ++d) {
      if (!(std::abs(f[d]) <= 1e6))
        throw std::invalid_argument("Permutohedral: features must be finite and within 1e6 deviations, got " +
                                    std::to_string(f[d]));
      for (std::size_t i = 0; i < C; ++i) y[i] += basis[d][i] * f[d];
    }

    // The nearest vertex of remainder 0: round to multiples of C, then mend the sum where rounding erred most.
    std::array<int32_t, C> base{};
    std::array<double, C> rest{};
    int32_t excess = 0;
    for (std::size_t i = 0; i < C; ++i) {
      base[i] = int32_t(std::lround(y[i] / double(C)));
      rest[i] = y[i] - double(C) * base[i];
      excess += base[i];
    }
    std::array<std::size_t, C> order;  // by how far the point lies beyond the vertex, the furthest first
    for (std::size_t i = 0; i < C; ++i) order[i] = i;
    const auto sort = [&] {
      for (std::size_t i = 1; i < C; ++i)
        for (std::size_t j = i; j > 0 && rest[order[j]] > rest[order[j - 1]]; --j) std::swap(order[j], order[j - 1]);
    };
    sort();
    if (excess != 0) {
      for (; excess > 0; --excess) {  // the last ones go down
        const std::size_t i = order[C - std::size_t(excess)];
        base[i] -= 1, rest[i] += double(C);
      }
      for (; excess < 0; ++excess) {  // the first ones go up
        const std::size_t i = order[std::size_t(-excess) - 1];
        base[i] += 1, rest[i] -= double(C);
      }
      sort();
    }

    // Vertex k of the simplex: remainder k, the k last coordinates of the order lowered by C.
    for (std::size_t k = 0; k < C; ++k) {
      const double upper = rest[order[C - 1 - k]];
      const double weight = k == 0 ? 1.0 - (rest[order[0]] - upper) / double(C) : (upper - rest[order[C - k]]) / double(C);
      if (weight < 1e-12) continue;  // on a face: a vertex that no value reaches must not be stored
      std::array<int32_t, C> vertex;
      for (std::size_t i = 0; i < C; ++i) vertex[i] = int32_t(C) * base[i] + int32_t(k);
      for (std::size_t i = C - k; i < C; ++i) vertex[order[i]] -= int32_t(C);
      Key key;
      std::copy_n(vertex.begin(), D, key.begin());
      entries[k] = {table.insert(key), float(weight)};
    }
  }

  /// The vertex reached by `steps[i]` steps along each direction; a step along i adds 1 everywhere and takes C from i.
  static Key moved(Key key, std::size_t a, int32_t steps_a, std::size_t b, int32_t steps_b) {
    for (int32_t& k : key) k += steps_a + steps_b;
    if (a < D) key[a] -= int32_t(C) * steps_a;
    if (b < D) key[b] -= int32_t(C) * steps_b;
    return key;
  }

  void find_neighbours(const Table& table) {
    constexpr std::array<std::array<int32_t, 2>, 4> steps{{{1, 0}, {0, 1}, {1, 1}, {1, -1}}};
    for (std::size_t p = 0; p < pairs; ++p) {
      neighbours_[p].assign(table.keys.size(), {});
      for (std::size_t v = 1; v < table.keys.size(); ++v)
        for (std::size_t s = 0; s < steps.size(); ++s) {
          const uint32_t other = table.find(moved(table.keys[v], 2 * p, steps[s][0], 2 * p + 1, steps[s][1]));
          neighbours_[p][v][2 * s] = other;
          if (other != 0) neighbours_[p][other][2 * s + 1] = uint32_t(v);
        }
    }
    if constexpr (C % 2 == 1) {
      single_.assign(table.keys.size(), {});
      for (std::size_t v = 1; v < table.keys.size(); ++v) {
        const uint32_t other = table.find(moved(table.keys[v], C - 1, 1, C, 0));
        single_[v][0] = other;
        if (other != 0) single_[other][1] = uint32_t(v);
      }
    }
  }

  std::vector<std::array<Entry, C>> entries_;
  std::size_t vertices_ = 0;  // those that hold a point, and one more that stands for the empty ones
  std::array<std::vector<std::array<uint32_t, 8>>, pairs> neighbours_;
  std::vector<std::array<uint32_t, 2>> single_;
};

}  // namespace moecod::post::filter
