// The rules once more, as a plain loop over boxes, bins, samples and cells in float64, for one channel: what the
// campaign holds the kernels to. Where that would take long a box is left out.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "core.h"

namespace loop {

using namespace roialign;

// A sum and that of its parts' sizes, to which its rounding is held.
struct Total {
  double value = 0, size = 0;
  void add(double part) { value += part, size += std::abs(part); }
};

struct Tap {
  int64_t cell;
  double weight;
  Total slope[2];  // of the weight, as the box's lower or its upper edge moves
  Tap(int64_t c, double w) : cell(c), weight(w) {}
};
using Sample = std::vector<Tap>;  // nothing: it lies outside and counts 0
using Bin = std::vector<Sample>;  // of whole cells: each is a sample; of an integral there is one, all of its cells

// One axis of one box.
struct Axis {
  std::vector<Bin> bins;
  bool finite = true, left_out = false;
};

// The integral of a cell's hat up to `t` from its centre.
inline double hat(double t) {
  if (t <= -1) return 0;
  if (t >= 1) return 1;
  return t < 0 ? (t + 1) * (t + 1) / 2 : 1 - (1 - t) * (1 - t) / 2;
}

inline double triangle(double t) { return std::max(1 - std::abs(t), 0.0); }

// Where a point between the lower and the upper edge goes as one of them moves by 1.
inline double moves(int upper, double place) { return upper ? place : 1 - place; }

// `speed`: how the sample moves with each edge. At a cell's centre the derivative is the one to the right.
inline Sample sample_at(double s, int64_t length, const double (&speed)[2]) {
  if (s < -1 || s > static_cast<double>(length)) return {};
  const double at = std::min(std::max(s, 0.0), static_cast<double>(length - 1));
  const auto cell = std::min(static_cast<int64_t>(at), length - 1);
  const double fraction = at - static_cast<double>(cell);
  if (s < 0 || cell == length - 1) return {{cell, 1}};
  Sample taps = {{cell, 1 - fraction}, {cell + 1, fraction}};
  for (int upper : {0, 1}) taps[0].slope[upper].add(-speed[upper]), taps[1].slope[upper].add(speed[upper]);
  return taps;
}

inline Axis axis_of(const Call& call, double lo, double hi, double scale, int32_t bins, int64_t length) {
  Axis axis;
  axis.bins.resize(static_cast<size_t>(bins));
  const double top = static_cast<double>(length);
  double start, size;
  if (call.kind == Kind::cells) {
    start = std::round(lo * scale);
    size = std::max(std::round(hi * scale) - start + 1, 1.0);
  } else if (call.kind == Kind::integral) {
    start = lo * scale;
    size = hi * scale - start;
  } else {
    const double offset = call.aligned ? 0.5 : 0;
    start = lo * scale - offset;
    size = hi * scale - offset - start;
  }
  axis.finite = std::isfinite(lo) && std::isfinite(hi) && std::isfinite(start) && std::isfinite(size);
  if (!axis.finite) return axis;
  if (call.kind == Kind::integral) size = std::max(size, 0.0);
  const bool fixed = (call.kind == Kind::avg || call.kind == Kind::max) && !call.aligned && !(size > 1);
  if (fixed) size = 1;
  const double bin = size / bins;
  const double grid = call.sampling_ratio > 0 ? static_cast<double>(call.sampling_ratio) : std::ceil(bin);
  if (call.kind == Kind::integral)  // differences of large numbers say little here
    axis.left_out = bin > 0 && (bin < 1e-3 || std::abs(start) > 1e4 || size > 1e4);
  else if (call.kind != Kind::cells)
    axis.left_out = grid > 6;
  for (int32_t p = 0; p < bins && !axis.left_out; ++p) {
    Bin& to = axis.bins[static_cast<size_t>(p)];
    if (call.kind == Kind::cells) {
      const double from = std::min(std::max(std::floor(p * bin) + start, 0.0), top);
      const double end = std::min(std::max(std::ceil((p + 1) * bin) + start, 0.0), top);
      for (double cell = from; cell < end; ++cell) to.push_back({{static_cast<int64_t>(cell), 1}});
    } else if (call.kind == Kind::integral) {
      Sample all;
      const double from = start + p * bin;
      for (int64_t j = 0; j < length && bin > 0; ++j) {
        const double at = static_cast<double>(j), part = hat(from + bin - at) - hat(from - at);
        if (!(part > 0)) continue;
        all.push_back({j, part / bin});
        for (int upper : {0, 1}) {
          Total& slope = all.back().slope[upper];
          slope.add(triangle(from + bin - at) / bin * scale * moves(upper, (p + 1.0) / bins));
          slope.add(-triangle(from - at) / bin * scale * moves(upper, static_cast<double>(p) / bins));
          slope.add(part / bin / bin * scale / bins * (upper ? -1 : 1));
        }
      }
      to.push_back(all);
    } else {
      for (double i = 0; i < grid; ++i) {
        const double place = (p + (i + 0.5) / grid) / bins;
        const double speed[2] = {fixed ? scale : scale * moves(0, place), fixed ? 0 : scale * moves(1, place)};
        to.push_back(sample_at((start + p * bin) + ((i + 0.5) * bin) / grid, length, speed));
      }
    }
  }
  return axis;
}

inline double number(const char* at, DType type) {
  double wide;
  float narrow;
  uint16_t bits;
  uint32_t high;
  switch (type) {
    case DType::float64:
      std::memcpy(&wide, at, 8);
      return wide;
    case DType::float32:
      std::memcpy(&narrow, at, 4);
      return static_cast<double>(narrow);
    case DType::bfloat16:
      std::memcpy(&bits, at, 2);
      high = static_cast<uint32_t>(bits) << 16;
      std::memcpy(&narrow, &high, 4);
      return static_cast<double>(narrow);
    default:
      std::memcpy(&bits, at, 2);
      const int exponent = bits >> 10 & 31, fraction = bits & 1023;
      if (exponent == 31) return fraction ? NAN : bits & 0x8000 ? -INFINITY : INFINITY;
      const double size = exponent ? std::ldexp(1024 + fraction, exponent - 25) : std::ldexp(fraction, -24);
      return bits & 0x8000 ? -size : size;
  }
}

// The bins of one box and one channel, and, given their gradient, that to the channel of the map.
class Box {
 public:
  Box(const Call& call, int64_t row) : call_(call) {
    const auto* roi = static_cast<const double*>(call.rois) + call.columns() * row;
    level_ = call.level_of_box ? call.level_of_box[row] : 0;
    image_ = static_cast<int64_t>(roi[0]);
    const Level& level = this->level();
    const double scales[] = {level.scale_x, level.scale_y, level.scale_z};
    const int32_t bins[] = {call.pooled_w, call.pooled_h, call.pooled_d};
    const int64_t lengths[] = {level.width, level.height, level.depth};
    for (int a = 0; a < 3; ++a) {
      if (a >= call.rank)
        axis_[a].bins = {{{{0, 1}}}};  // the one cell
      else
        axis_[a] = axis_of(call, roi[1 + a], roi[1 + call.rank + a], scales[a], bins[a], lengths[a]);
      finite = finite && axis_[a].finite;
      left_out = left_out || axis_[a].left_out;
    }
    left_out = left_out && finite;
  }

  const Level& level() const { return call_.levels[level_]; }
  int64_t level_index() const { return level_; }

  // Bin b of channel c, counted along x first.
  Total pooled(int64_t b, int64_t c) {
    Total best;
    bool best_exact = true;
    const int64_t count = for_each_sample(b, [&](const Sample& z, const Sample& y, const Sample& x, int64_t i) {
      Total sample;
      for (const Tap& tz : z)
        for (const Tap& ty : y)
          for (const Tap& tx : x) sample.add(tz.weight * ty.weight * tx.weight * cell(c, tz, ty, tx));
      if (!info(call_.kind).takes_maximum) {
        best.value += sample.value, best.size += sample.size;
        return;
      }
      const double lead = std::abs(sample.value - best.value);
      // Of equal samples the first wins, but where weights are summed rounding says which are equal.
      const bool exact = (z.size() <= 1 && y.size() <= 1 && x.size() <= 1) || sample.size == 0;
      if (i && !(lead == 0 && exact && best_exact) && lead <= 1e-2 * sample.size) close = true;
      if (!i || sample.value > best.value) best = sample, best_exact = exact, winner_ = i;
    });
    if (info(call_.kind).takes_maximum || !count) return best;
    return {best.value / static_cast<double>(count), best.size / static_cast<double>(count)};
  }

  // Adds the gradient of bin b, whose pooled() came before, to totals of one channel of all images.
  void spread(int64_t b, double grad, std::vector<Total>& to) const {
    const bool maximum = info(call_.kind).takes_maximum;
    const int64_t count = for_each_sample(b, [](auto&&...) {});
    const double share = maximum ? 1 : static_cast<double>(count);
    for_each_sample(b, [&](const Sample& z, const Sample& y, const Sample& x, int64_t i) {
      if (maximum && i != winner_) return;
      for (const Tap& tz : z)
        for (const Tap& ty : y)
          for (const Tap& tx : x) {
            const int64_t at = (tz.cell * level().height + ty.cell) * level().width + tx.cell;
            to[static_cast<size_t>(image_ * level().cells() + at)].add(tz.weight * ty.weight * tx.weight * grad /
                                                                       share);
          }
    });
  }

  // Adds the gradient to the row of this box that bin b gives, of whose channels `grad` tells the gradient.
  template <class Grad>
  void move(int64_t b, Grad&& grad, std::vector<Total>& to) const {
    const auto count = static_cast<double>(for_each_sample(b, [](auto&&...) {}));
    for_each_sample(b, [&](const Sample& z, const Sample& y, const Sample& x, int64_t) {
      for (const Tap& tz : z)
        for (const Tap& ty : y)
          for (const Tap& tx : x) {
            Total value;
            for (int64_t c = 0; c < level().channels; ++c) value.add(cell(c, tz, ty, tx) * grad(c));
            const Tap* const taps[] = {&tx, &ty, &tz};
            for (int column = 0; column < 2 * call_.rank; ++column) {
              const int along = column % call_.rank;
              double others = 1 / count;
              for (int a = 0; a < call_.rank; ++a) others *= a == along ? 1 : taps[a]->weight;
              const Total& slope = taps[along]->slope[column / call_.rank];
              Total& edge = to[static_cast<size_t>(1 + column)];
              edge.value += others * value.value * slope.value, edge.size += others * value.size * slope.size;
            }
          }
    });
  }

  bool finite = true, left_out = false;
  bool close = false;  // two samples were nearly the greatest

 private:
  template <class Visit>
  int64_t for_each_sample(int64_t b, Visit&& visit) const {
    const int64_t w = call_.pooled_w, h = call_.pooled_h;
    int64_t i = 0;
    for (const Sample& z : axis_[2].bins[static_cast<size_t>(b / w / h)])
      for (const Sample& y : axis_[1].bins[static_cast<size_t>(b / w % h)])
        for (const Sample& x : axis_[0].bins[static_cast<size_t>(b % w)]) visit(z, y, x, i++);
    return i;
  }
  double cell(int64_t c, const Tap& z, const Tap& y, const Tap& x) const {
    const int64_t* stride = level().stride;
    const int64_t at =
        image_ * stride[0] + c * stride[1] + z.cell * stride[2] + y.cell * stride[3] + x.cell * stride[4];
    return number(level().data + at * kDTypes[static_cast<int>(call_.dtype)].bytes, call_.dtype);
  }

  const Call& call_;
  Axis axis_[3];
  int64_t level_, image_, winner_ = 0;
};

}  // namespace loop
