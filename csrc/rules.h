// The rules of docs/derivation.md along one axis: which cells a bin touches, and with what weight.
// Compiled without contraction (-ffp-contract=off): a sample must fall in the same cell, and on the same side of the
// border, as the formula evaluated step by step in the type T of the boxes.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <vector>

namespace roialign {

// Taps of one axis before compaction. Weights and derivatives are exact enough in double for every use.
struct Taps {
  std::vector<int32_t> begin, index, group;
  std::vector<double> weight, dlo, dhi;
  bool derivative = false;
  double least = 0;  // weights up to this one are 0 in the kernels' type

  size_t rows() const { return begin.size() - 1; }
  int32_t in_row(size_t row) const { return begin[row + 1] - begin[row]; }
  void start(bool with_derivative, double least_) {
    derivative = with_derivative;
    least = least_;
    begin.assign(1, 0);
    for (auto* ints : {&index, &group}) ints->clear();
    for (auto* reals : {&weight, &dlo, &dhi}) reals->clear();
  }
  // A cell of weight zero counts nothing, whatever it holds, so it leaves the row, unless its weight has a slope.
  void end_row() {
    auto to = static_cast<size_t>(begin.back());
    for (size_t from = to; from < index.size(); ++from) {
      const bool slopes = derivative && (dlo[from] != 0 || dhi[from] != 0);
      if (!(weight[from] > least) && !slopes) continue;
      index[to] = index[from];
      weight[to] = weight[from];
      if (derivative) {
        dlo[to] = dlo[from];
        dhi[to] = dhi[from];
      }
      ++to;
    }
    index.resize(to);
    weight.resize(to);
    if (derivative) {
      dlo.resize(to);
      dhi.resize(to);
    }
    if (std::max(index.size(), begin.size()) > static_cast<size_t>(std::numeric_limits<int32_t>::max()))
      throw std::length_error("roialign: a box takes more than 2^31 samples along one axis of the map");
    begin.push_back(static_cast<int32_t>(index.size()));
  }
  void add(int32_t cell, double w, double lo, double hi) {
    index.push_back(cell);
    weight.push_back(w);
    if (derivative) {
      dlo.push_back(lo);
      dhi.push_back(hi);
    }
  }
  // Adds to a tap of the current row if it has one. Samples come in increasing order, so it is one of the last two.
  void merge(int32_t cell, double w, double lo, double hi) {
    const size_t row = static_cast<size_t>(begin.back()), end = index.size();
    for (size_t i = end; i > row && i + 2 > end; --i) {
      if (index[i - 1] != cell) continue;
      weight[i - 1] += w;
      if (derivative) {
        dlo[i - 1] += lo;
        dhi[i - 1] += hi;
      }
      return;
    }
    add(cell, w, lo, hi);
  }
};

// From here on a float has no fraction: cells and samples could not be told apart, and a step of one might not move.
constexpr int64_t kFloatCells = 1 << 23;

// Whether a box's positions along one axis can be computed in float; otherwise they are in double.
inline bool fits_float(float lo, float hi, double scale, int64_t length, int64_t ratio) {
  constexpr auto most = static_cast<float>(kFloatCells);
  const auto factor = static_cast<float>(scale);
  return std::max(length, ratio) <= kFloatCells && std::abs(lo * factor) <= most && std::abs(hi * factor) <= most;
}

// The sample before this one. Beyond 2^53 there are samples that no double counts: they are passed over.
inline double before(double i) { return std::min(i - 1, i * (1 - 0x1p-53)); }

// Sample positions of one axis of one box: P bins of `grid` samples each.
template <class T>
struct Samples {
  T start, size, bin, grid;
  double scale = 1;
  int32_t bins, length;
  bool derivative = false;              // of the weights, wanted
  bool finite = false, resizes = true;  // resizes: the size follows the box edges (it was not forced to one pixel)

  Samples(T lo, T hi, double scale_, int32_t bins_, int32_t length_, int64_t ratio, bool aligned, bool derivative_)
      : scale(scale_), bins(bins_), length(length_), derivative(derivative_) {
    const T factor = static_cast<T>(scale_), offset = aligned ? T(0.5) : T(0);
    start = lo * factor - offset;
    const T end = hi * factor - offset;
    size = end - start;
    finite = std::isfinite(start) && std::isfinite(size);  // and so are lo and hi
    if (!aligned) {
      resizes = size > T(1);
      size = std::max(size, T(1));
    }
    divide(ratio);
  }
  // Bins that begin at `start_` and have `size_` together, whatever box they are of.
  Samples(T start_, T size_, int32_t bins_, int32_t length_, int64_t ratio)
      : start(start_), size(size_), bins(bins_), length(length_) {
    divide(ratio);
  }
  void divide(int64_t ratio) {
    bin = size / static_cast<T>(bins);
    grid = ratio > 0 ? static_cast<T>(ratio) : std::ceil(bin);
  }

  T at(int32_t p, double i) const {
    return (start + static_cast<T>(p) * bin) + ((static_cast<T>(i) + T(0.5)) * bin) / grid;
  }
  // The samples of a bin in increasing position: an inverted box has them mirrored.
  double mirror(double i) const { return bin >= 0 ? i : (static_cast<double>(grid) - 1) - i; }
  T sorted_at(int32_t p, double i) const { return at(p, mirror(i)); }
  bool inside(T s) const { return s >= T(-1) && s <= static_cast<T>(length); }
  // Visiting every sample is no more work than visiting every cell.
  bool few() const {
    const double cells = std::min<double>(length + 1.0, std::abs(static_cast<double>(bin))) + 2;
    return static_cast<double>(grid) <= std::max(8.0, 2 * cells);
  }

  // The first sorted sample in [i, end) at or beyond `limit` (strictly beyond if `past`), or end. Positions do not
  // decrease, rounding included, so bisection finds exactly what visiting each sample would; the guess makes it short.
  // What comes back is beyond i wherever sample i is not.
  double first_from(int32_t p, double i, double end, T limit, bool past) const {
    auto reached = [&](double k) {
      const T s = sorted_at(p, k);
      return past ? s > limit : s >= limit;
    };
    if (i >= end || reached(i)) return i;
    double low = i, high = end;  // low has not reached the limit; high has, or is the end
    const double step = std::abs(static_cast<double>(bin)) / static_cast<double>(grid);
    const double guess = i + std::ceil((static_cast<double>(limit) - static_cast<double>(sorted_at(p, i))) / step);
    for (const double probe : {guess, guess - 1, guess + 1}) {
      if (!(probe > low && probe < high)) continue;
      (reached(probe) ? high : low) = probe;
    }
    while (high - low > 1) {
      const double middle = std::floor(low + (high - low) / 2);
      if (!(middle > low && middle < high)) break;  // indices beyond 2^53 have no integer in between
      (reached(middle) ? high : low) = middle;
    }
    return high;
  }
};

// Whether the samples of an axis count: of more than 2^50 of an adaptive grid those on the map weigh nothing, and no
// double tells them apart.
template <class T>
bool counts(const Samples<T>& axis, int64_t ratio) {
  return ratio > 0 || static_cast<double>(axis.grid) * axis.bins < 0x1p50;
}

// Where one sample falls: cell j, and the fraction towards j + 1.
template <class T>
struct Spot {
  int32_t cell;
  T fraction;
  bool slopes;  // moving the sample changes the value
  bool last;    // only the last cell is touched

  Spot(T s, int32_t length) {
    const T top = static_cast<T>(length - 1);
    const T clamped = std::min(std::max(s, T(0)), top);
    cell = static_cast<int32_t>(clamped);
    last = cell == length - 1;
    slopes = s >= T(0) && !last;
    fraction = clamped - static_cast<T>(cell);
  }
};

// How a sample moves with the two edges, summed over `count` samples whose mean index is `mean`.
struct Motion {
  double lo, hi;
  template <class T>
  Motion(const Samples<T>& axis, int32_t p, double mean, double count, double divisor) : lo(0), hi(0) {
    if (!axis.derivative) return;
    const double scale = axis.scale * count / divisor;
    const double along = axis.resizes ? (p + (mean + 0.5) / static_cast<double>(axis.grid)) / axis.bins : 0;
    lo = scale * (1 - along);
    hi = scale * along;
  }
};

template <class T>
void add_samples(Taps& taps, const Spot<T>& spot, double fractions, double count, const Motion& motion,
                 double divisor) {
  if (spot.last) {
    taps.merge(spot.cell, count / divisor, 0, 0);
    return;
  }
  const double lo = spot.slopes ? motion.lo : 0, hi = spot.slopes ? motion.hi : 0;
  taps.merge(spot.cell, (count - fractions) / divisor, -lo, -hi);
  taps.merge(spot.cell + 1, fractions / divisor, lo, hi);
}

// Calls visit(first, end) for each maximal range of sorted samples inside the map that lie in one cell, in order.
template <class T, class Visit>
void for_each_cell(const Samples<T>& axis, int32_t p, Visit&& visit) {
  const double grid = static_cast<double>(axis.grid);
  const double end = axis.first_from(p, 0, grid, static_cast<T>(axis.length), true);
  double i = axis.first_from(p, 0, end, T(-1), false);
  while (i < end) {
    const T s = axis.sorted_at(p, i);
    double next = end;
    if (s < static_cast<T>(axis.length - 1)) next = axis.first_from(p, i, end, std::floor(s) + T(1), false);
    visit(i, next);
    i = next;
  }
}

// Mean over the samples of each bin.
template <class T>
void average_taps(Taps& taps, const Samples<T>& axis) {
  const double grid = static_cast<double>(axis.grid);
  const bool few = axis.few();
  for (int32_t p = 0; p < axis.bins; ++p, taps.end_row()) {
    if (few) {
      for (double i = 0; i < grid; ++i) {
        const T s = axis.sorted_at(p, i);
        if (!axis.inside(s)) continue;
        const Spot<T> spot(s, axis.length);
        add_samples(taps, spot, static_cast<double>(spot.fraction), 1, Motion(axis, p, axis.mirror(i), 1, grid), grid);
      }
      continue;
    }
    for_each_cell(axis, p, [&](double first, double end) {
      const double count = end - first, last = before(end);
      const Spot<T> a(axis.sorted_at(p, first), axis.length), b(axis.sorted_at(p, last), axis.length);
      const double fractions = count * (static_cast<double>(a.fraction) + static_cast<double>(b.fraction)) / 2;
      add_samples(taps, a, fractions, count, Motion(axis, p, axis.mirror((first + last) / 2), count, grid), grid);
    });
  }
}

// One row per sample that can be the first maximum of its bin, in the order of the samples. Along an axis the value is
// linear within a cell, so only the first and the last sample of a cell can; and the first one on either side outside.
template <class T>
void sample_taps(Taps& taps, const Samples<T>& axis) {
  const double grid = static_cast<double>(axis.grid);
  const bool few = axis.few();
  std::vector<double> chosen;
  taps.group.push_back(0);
  for (int32_t p = 0; p < axis.bins; ++p) {
    chosen.clear();
    if (few) {
      for (double i = 0; i < grid; ++i) chosen.push_back(i);
    } else {
      const double above = axis.first_from(p, 0, grid, static_cast<T>(axis.length), true);
      const double below = axis.first_from(p, 0, above, T(-1), false);
      auto keep = [&](double first, double end) {  // one sample or two
        if (first >= end) return;
        chosen.push_back(axis.mirror(first));
        if (before(end) > first) chosen.push_back(axis.mirror(before(end)));
      };
      keep(0, below);
      for_each_cell(axis, p, keep);
      keep(above, grid);
      if (axis.bin < 0) std::reverse(chosen.begin(), chosen.end());
    }
    for (const double i : chosen) {
      const T s = axis.at(p, i);
      if (axis.inside(s)) {
        const Spot<T> spot(s, axis.length);
        add_samples(taps, spot, static_cast<double>(spot.fraction), 1, Motion(axis, p, i, 1, 1), 1);
      }
      taps.end_row();
    }
    taps.group.push_back(static_cast<int32_t>(taps.rows()));
  }
}

// An axis that the map does not have, as one of a single cell in a single bin.
inline void one_cell(Taps& taps, bool grouped, bool derivative) {
  taps.start(derivative, 0);
  taps.add(0, 1, 0, 0);
  taps.end_row();
  if (grouped) taps.group = {0, 1};
}

// Precise RoI pooling: the mean over the bin of the interpolated map, which is zero outside. The bin is cut at the
// cells' centres; a piece acts as one sample at its middle that weighs its share of the bin, which is exact and stays
// so for the longest and the shortest bin, derivative included. False if not finite.
inline bool integral_taps(Taps& taps, double lo, double hi, double scale, int32_t bins, int32_t length) {
  const double start = lo * scale, raw = hi * scale - start;
  if (!std::isfinite(start) || !std::isfinite(raw)) return false;
  const double bin = raw / bins;
  for (int32_t p = 0; p < bins; ++p, taps.end_row()) {
    const double from = start + p * bin, end = std::min(from + bin, length - 1.0);
    for (double k = std::max(std::floor(from), -1.0); k <= end; ++k) {
      const double skipped = std::max(k - from, 0.0);  // of the bin, before cell k's centre
      const double piece = std::min({1.0, bin, k + 1 - from, bin - (k - from)});
      if (!(piece > 0)) continue;  // as in every bin without area
      const double share = piece / bin, middle = std::max(from - k, 0.0) + piece / 2;
      const double along = (p + (skipped + piece / 2) / bin) / bins;  // of the box
      const double moved_lo = scale * share * (1 - along), moved_hi = scale * share * along;
      const auto cell = static_cast<int32_t>(k);
      if (cell >= 0) taps.merge(cell, share * (1 - middle), -moved_lo, -moved_hi);
      if (cell + 1 < length) taps.merge(cell + 1, share * middle, moved_lo, moved_hi);
    }
  }
  return true;
}

// RoIPool: the whole cells of each bin. `mean`: position-sensitive RoI pooling, which takes their mean, ends before the
// cell of the upper edge, and never reads the map's last cell. False if not finite.
template <class T>
bool cell_taps(Taps& taps, T lo, T hi, double scale, int32_t bins, int32_t length, bool mean) {
  const T first = std::round(lo * static_cast<T>(scale)), last = std::round(hi * static_cast<T>(scale));
  const T span = last - first, size = std::max(span + (mean ? T(0) : T(1)), T(1));
  if (!std::isfinite(first) || !std::isfinite(span)) return false;
  const T bin = size / static_cast<T>(bins), top = static_cast<T>(mean ? length - 1 : length);
  for (int32_t p = 0; p < bins; ++p, taps.end_row()) {
    const T from = std::floor(static_cast<T>(p) * bin) + first, to = std::ceil(static_cast<T>(p + 1) * bin) + first;
    const auto begin = static_cast<int32_t>(std::min(std::max(from, T(0)), top));
    const auto end = static_cast<int32_t>(std::min(std::max(to, T(0)), top));
    for (int32_t cell = begin; cell < end; ++cell) taps.add(cell, mean ? 1.0 / (end - begin) : 1.0, 0, 0);
  }
  return true;
}

}  // namespace roialign
