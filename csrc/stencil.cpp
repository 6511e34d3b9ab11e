#include "stencil.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <new>
#include <type_traits>
#include <vector>

#include "bin_taps.h"
#include "moved.h"
#include "rotated.h"
#include "rules.h"

namespace roialign {
namespace {

// The taps as the kernels read them, and where on the map they lie.
template <class A>
class Keeper {
 public:
  explicit Keeper(Arena& arena) : arena_(arena) {}

  void keep(const Collector& taps, Box<A>& box) {
    auto* stencil = new (arena_.take<Stencil<A>>(1)) Stencil<A>();
    stencil->begin = copy<int32_t>(taps.begin);
    stencil->cell = copy<Cell>(taps.cell);
    stencil->weight = copy<A>(taps.weight);
    if (taps.rates) stencil->rates = copy<A>(taps.rate);
    box.stencil = stencil;
    if (taps.cell.empty()) return;
    Cell least = taps.cell[0], most = least;
    for (const Cell& cell : taps.cell) {
      least = {std::min(least.y, cell.y), std::min(least.x, cell.x)};
      most = {std::max(most.y, cell.y), std::max(most.x, cell.x)};
    }
    box.y = range(least.y, most.y);
    box.x = range(least.x, most.x);
    spans(taps, box, *stencil);
  }

 private:
  template <class To, class From>
  const To* copy(const std::vector<From>& from) {
    To* to = arena_.take<To>(from.size());
    std::transform(from.begin(), from.end(), to, [](const From& value) { return static_cast<To>(value); });
    return to;
  }
  Axis<A> range(int32_t first, int32_t last) {
    Axis<A> axis;
    axis.touched = last - first + 1;
    int32_t* cells = arena_.take<int32_t>(static_cast<size_t>(axis.touched));
    for (int32_t i = 0; i < axis.touched; ++i) cells[i] = first + i;
    axis.cell = cells;
    return axis;
  }
  void spans(const Collector& taps, const Box<A>& box, Stencil<A>& stencil) {
    const int32_t top = box.y.cell[0], left = box.x.cell[0];
    Run* spans = arena_.take<Run>(static_cast<size_t>(box.y.touched));
    std::fill(spans, spans + box.y.touched, Run{0, 0, 0});
    for (const Cell& cell : taps.cell) {
      Run& span = spans[cell.y - top];
      const int32_t first = span.count ? std::min(span.cell, cell.x) : cell.x;
      const int32_t end = span.count ? std::max(span.cell + span.count, cell.x + 1) : cell.x + 1;
      span = {first, first - left, end - first};
    }
    for (int32_t i = 0; i < box.y.touched; ++i) stencil.cells += spans[i].count;
    stencil.spans = spans;
  }

  Arena& arena_;
};

template <class A>
class Builder {
 public:
  Builder(const Call& call, Wanted wanted, Arena& arena) : call_(call), wanted_(wanted), keeper_(arena) {}

  template <class T>
  void build(const T* roi, Box<A>& box) {
    const Form form = info(call_.kind).form;
    const Level& level = call_.levels[call_.level_of_box ? call_.level_of_box[box.row] : 0];
    if constexpr (std::is_same_v<T, float>) {
      if (!fits_float(form, level, roi)) {
        wide_.assign(roi, roi + call_.columns());
        return build(wide_.data(), box);
      }
    }
    taps_.start(wanted_.derivative ? rates_of(form) : 0, static_cast<double>(std::numeric_limits<A>::denorm_min()) / 2);
    if (form == Form::rotated) {
      const Rotated<T> rotated(call_, level, roi);
      if (!(box.finite = rotated.finite)) return;
      rotated.collect(taps_, merger_);
    } else {
      const Moved<T> moved(call_, level, roi, wanted_.derivative);
      if (!(box.finite = moved.finite)) return;
      moved.collect(taps_, taps_y_, taps_x_);
    }
    keeper_.keep(taps_, box);
  }

 private:
  // Whether positions can be computed in float.
  bool fits_float(Form form, const Level& level, const float* roi) const {
    const int64_t ratio = call_.sampling_ratio;
    // A rotated box has its centre and its size where another has its edges: the bound is the same.
    if (!roialign::fits_float(roi[1], roi[3], level.scale_x, level.width, ratio) ||
        !roialign::fits_float(roi[2], roi[4], level.scale_y, level.height, ratio))
      return false;
    if (form == Form::rotated) return true;
    const float wide = (roi[3] - roi[1]) * static_cast<float>(level.scale_x);
    const float high = (roi[4] - roi[2]) * static_cast<float>(level.scale_y);
    auto near = [](float size) {
      return [size](float shift) { return std::abs(size * shift) <= static_cast<float>(kFloatCells); };
    };
    const float* along_y = roi + 5 + call_.bins();
    return std::all_of(roi + 5, along_y, near(wide)) && std::all_of(along_y, along_y + call_.bins(), near(high));
  }

  const Call& call_;
  const Wanted wanted_;
  Keeper<A> keeper_;
  Collector taps_;
  Merger merger_;
  Taps taps_y_, taps_x_;
  std::vector<double> wide_;
};

}  // namespace

template <class A, class T>
void build_stencils(const Call& call, Wanted wanted, Box<A>* boxes, int64_t count, Arena& arena) {
  Builder<A> builder(call, wanted, arena);
  for (int64_t i = 0; i < count; ++i)
    builder.build(static_cast<const T*>(call.rois) + call.columns() * boxes[i].row, boxes[i]);
}

template void build_stencils<float, float>(const Call&, Wanted, Box<float>*, int64_t, Arena&);
template void build_stencils<float, double>(const Call&, Wanted, Box<float>*, int64_t, Arena&);
template void build_stencils<double, float>(const Call&, Wanted, Box<double>*, int64_t, Arena&);
template void build_stencils<double, double>(const Call&, Wanted, Box<double>*, int64_t, Arena&);

namespace {

// Samples of all bins together along one axis of a box.
double expected_samples(double size, int32_t bins, int64_t ratio) {
  const double each = ratio > 0 ? static_cast<double>(ratio) : std::ceil(size / bins);
  return std::max(each, 1.0) * bins;
}

template <class T>
double expected_taps(const Call& call, const Level& level, const T* roi) {
  const bool rotated = info(call.kind).form == Form::rotated;
  const double wide = std::abs(static_cast<double>(rotated ? roi[3] : roi[3] - roi[1]) * level.scale_x);
  const double high = std::abs(static_cast<double>(rotated ? roi[4] : roi[4] - roi[2]) * level.scale_y);
  const double corners = 4 * expected_samples(wide, call.pooled_w, call.sampling_ratio) *
                         expected_samples(high, call.pooled_h, call.sampling_ratio);
  const double map = static_cast<double>(level.height) * static_cast<double>(level.width);
  const auto bins = static_cast<double>(call.bins());
  // The bins of a rotated box share no more of the map than their borders; others may lie on top of each other.
  return std::min(corners, rotated ? 2 * map + 16 * bins : map * bins);
}

}  // namespace

double expected_taps(const Call& call, int64_t row) {
  const Level& level = call.levels[call.level_of_box ? call.level_of_box[row] : 0];
  const int64_t at = call.columns() * row;
  return call.rois_f64 ? expected_taps(call, level, static_cast<const double*>(call.rois) + at)
                       : expected_taps(call, level, static_cast<const float*>(call.rois) + at);
}

}  // namespace roialign
