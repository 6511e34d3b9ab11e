// The rule of rotated boxes: which cells a bin touches, and with what weight. Compiled without contraction, as rules.h.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <limits>
#include <utility>
#include <vector>

#include "bin_taps.h"
#include "core.h"
#include "rules.h"

namespace roialign {

// Sample indices [first, end) of one bin.
struct Range {
  double first, end;
};

// All samples of bin p that lie in [lo, hi], and a few more. Indices are near enough: whoever visits one looks where it
// lies.
template <class T>
Range samples_near(const Samples<T>& axis, int32_t p, double lo, double hi) {
  const double grid = static_cast<double>(axis.grid), step = static_cast<double>(axis.bin) / grid;
  const double start = static_cast<double>(axis.start) + p * static_cast<double>(axis.bin);
  double a = (lo - start) / step - 0.5, b = (hi - start) / step - 0.5;
  if (!(grid > 0)) return {0, 0};
  if (a > b) std::swap(a, b);
  if (!(a <= b)) return {0, grid};  // all samples lie at one place
  return {std::clamp(std::floor(a), 0.0, grid), std::clamp(std::ceil(b) + 1, 0.0, grid)};
}

// A box that is turned about its centre: its samples lie on a grid of its own axes. Positions are computed in T as the
// rule says, and in no other order.
template <class T>
class Rotated {
 public:
  Rotated(const Call& call, const Level& level, const T* roi) : level_(level) {
    const T offset = call.aligned ? T(0.5) : T(0);
    const auto scale_x = static_cast<T>(level.scale_x), scale_y = static_cast<T>(level.scale_y);
    x_ = roi[1] * scale_x - offset;
    y_ = roi[2] * scale_y - offset;
    T width = roi[3] * scale_x, height = roi[4] * scale_y;
    const T numbers[] = {x_, y_, width, height, roi[1], roi[2], roi[3], roi[4], roi[5]};
    finite = std::all_of(std::begin(numbers), std::end(numbers), [](T number) { return std::isfinite(number); });
    // Rounded once from double, so that every backend has the same.
    sin_ = static_cast<T>(std::sin(static_cast<double>(roi[5])));
    cos_ = static_cast<T>(std::cos(static_cast<double>(roi[5])));
    resizes_x_ = call.aligned || width > T(1);
    resizes_y_ = call.aligned || height > T(1);
    if (!call.aligned) {
      width = std::max(width, T(1));
      height = std::max(height, T(1));
    }
    xs_ = Samples<T>(-width / 2, width, call.pooled_w, static_cast<int32_t>(level.width), call.sampling_ratio);
    ys_ = Samples<T>(-height / 2, height, call.pooled_h, static_cast<int32_t>(level.height), call.sampling_ratio);
    const double size = std::abs(static_cast<double>(width)) + std::abs(static_cast<double>(height));
    const auto across = static_cast<double>(level.width), down = static_cast<double>(level.height);
    // So far from the map that it could not be told how far.
    const bool away = std::abs(x()) > size + across + 2 || std::abs(y()) > size + down + 2;
    auto on_map = [&](double at, double length) { return at - size / 2 >= 0 && at + size / 2 <= length; };
    empty_ = away || !counts(xs_, call.sampling_ratio) || !counts(ys_, call.sampling_ratio);
    slack_ = 1 + 32 * static_cast<double>(std::numeric_limits<T>::epsilon()) * (size + across + down);
    whole_ = !away && on_map(x(), xs_.length) && on_map(y(), ys_.length);
    share_ = 1 / (static_cast<double>(xs_.grid) * static_cast<double>(ys_.grid));
  }

  bool finite = false;

  void collect(Collector& taps, Merger& merger) const {
    // The map along the box's own axes: rows and columns of samples beyond it touch nothing.
    const double left = -slack_ - x(), right = xs_.length + slack_ - x();
    const double top = -slack_ - y(), bottom = ys_.length + slack_ - y();
    auto between = [&](double of_x, double of_y) {
      return std::minmax({left * of_x + top * of_y, right * of_x + top * of_y, left * of_x + bottom * of_y,
                          right * of_x + bottom * of_y});
    };
    const Lines rows(ys_, between(sine(), cosine()), empty_), columns(xs_, between(cosine(), -sine()), empty_);
    for (int32_t p = 0; p < ys_.bins; ++p)
      for (int32_t q = 0; q < xs_.bins; ++q) {
        collect_bin(taps, merger, rows, p, columns, q);
        taps.end_bin();
      }
  }

 private:
  // The rows of samples, or the columns, that may lie on the map.
  struct Line {
    T position;
    double fraction;  // of the box, from its centre
  };
  struct Lines {
    struct Bin {
      double first;  // its sample that is listed first
      size_t begin, end;
    };
    std::vector<Line> line;
    std::vector<Bin> bin;

    Lines(const Samples<T>& axis, std::pair<double, double> map, bool empty) {
      bin.reserve(static_cast<size_t>(axis.bins));
      for (int32_t p = 0; p < axis.bins; ++p) {
        const Range range = empty ? Range{0, 0} : samples_near(axis, p, map.first, map.second);
        bin.push_back({range.first, line.size(), line.size()});
        for (double i = range.first; i < range.end; ++i)
          line.push_back({axis.at(p, i), (p + (i + 0.5) / static_cast<double>(axis.grid)) / axis.bins - 0.5});
        bin.back().end = line.size();
      }
    }
  };

  double x() const { return static_cast<double>(x_); }
  double y() const { return static_cast<double>(y_); }
  double sine() const { return static_cast<double>(sin_); }
  double cosine() const { return static_cast<double>(cos_); }

  T x_of(const Line& row, const Line& column) const { return (row.position * sin_ + column.position * cos_) + x_; }
  T y_of(const Line& row, const Line& column) const { return (row.position * cos_ - column.position * sin_) + y_; }

  void collect_bin(Collector& taps, Merger& merger, const Lines& rows, int32_t p, const Lines& columns,
                   int32_t q) const {
    const auto &down = rows.bin[static_cast<size_t>(p)], &across = columns.bin[static_cast<size_t>(q)];
    if (down.begin == down.end || across.begin == across.end) return;
    for (size_t r = down.begin; r < down.end; ++r) {
      size_t from = across.begin, to = across.end;
      if (!whole_) {
        const Range range = on_the_map(rows.line[r], q);
        const auto count = static_cast<double>(across.end - across.begin);
        from += static_cast<size_t>(std::clamp(range.first - across.first, 0.0, count));
        to = across.begin + static_cast<size_t>(std::clamp(range.end - across.first, 0.0, count));
      }
      for (; from < to; ++from) add_sample(merger, taps.rates > 0, rows.line[r], columns.line[from]);
    }
    merger.finish(share_, taps);
  }

  // The samples of one row and bin that may lie on the map.
  Range on_the_map(const Line& row, int32_t q) const {
    double lo = -std::numeric_limits<double>::infinity(), hi = -lo;
    auto clip = [&](double from, double slope, double length) {
      const double a = (-slack_ - from) / slope, b = (length + slack_ - from) / slope;
      if (a != a || b != b) return;  // the row runs along this edge of the map
      lo = std::max(lo, std::min(a, b));
      hi = std::min(hi, std::max(a, b));
    };
    const auto position = static_cast<double>(row.position);
    clip(position * sine() + x(), cosine(), xs_.length);
    clip(position * cosine() + y(), -sine(), ys_.length);
    return lo <= hi ? samples_near(xs_, q, lo, hi) : Range{0, 0};
  }

  void add_sample(Merger& merger, bool moves, const Line& row, const Line& column) const {
    const T x = x_of(row, column), y = y_of(row, column);
    if (!xs_.inside(x) || !ys_.inside(y)) return;
    const Spot<T> to_x(x, xs_.length), to_y(y, ys_.length);
    const Merger::Sample sample{
        {to_y.cell, to_x.cell}, static_cast<double>(to_y.fraction), static_cast<double>(to_x.fraction)};
    moves ? merger.add(sample, motion_of(to_x.slopes, to_y.slopes, row, column)) : merger.add(sample);
  }

  // How a sample's place on the map follows the numbers of the box, where its value follows its place.
  Merger::Motion motion_of(bool slopes_x, bool slopes_y, const Line& row, const Line& column) const {
    const double wide = resizes_x_ ? column.fraction * level_.scale_x : 0;
    const double high = resizes_y_ ? row.fraction * level_.scale_y : 0;
    const auto down = static_cast<double>(row.position), right = static_cast<double>(column.position);
    Merger::Motion motion{};
    if (slopes_y) motion.y = {0, level_.scale_y, -wide * sine(), high * cosine(), -down * sine() - right * cosine()};
    if (slopes_x) motion.x = {level_.scale_x, 0, wide * cosine(), high * sine(), down * cosine() - right * sine()};
    return motion;
  }

  const Level& level_;
  T x_, y_, sin_, cos_;
  bool resizes_x_, resizes_y_;  // the size follows the box (it was not forced to one pixel)
  Samples<T> xs_{0, 0, 1, 1, 1}, ys_{0, 0, 1, 1, 1};
  double share_ = 1;    // of one sample in its bin
  double slack_ = 1;    // no position near the map is rounded by as much
  bool empty_ = true;   // no sample counts
  bool whole_ = false;  // all samples are on the map
};

}  // namespace roialign
