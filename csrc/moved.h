// The rule of bins that are moved one by one. Compiled without contraction, as rules.h.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "bin_taps.h"
#include "core.h"
#include "rules.h"

namespace roialign {

// RoIAlign's box, always aligned, whose bins are moved by so many boxes each.
template <class T>
class Moved {
 public:
  Moved(const Call& call, const Level& level, const T* roi, bool derivative)
      : ys_(roi[2], roi[4], level.scale_y, call.pooled_h, static_cast<int32_t>(level.height), call.sampling_ratio, true,
            derivative),
        xs_(roi[1], roi[3], level.scale_x, call.pooled_w, static_cast<int32_t>(level.width), call.sampling_ratio, true,
            derivative),
        along_x_(roi + 5),
        along_y_(roi + 5 + call.bins()) {
    counts_ = counts(ys_, call.sampling_ratio) && counts(xs_, call.sampling_ratio);
    auto finite_shifts = [&](const Samples<T>& box, const T* along) {
      return box.finite && std::all_of(along, along + call.bins(), [&](T shift) {
               return std::isfinite(shift) && std::isfinite(box.size * shift);
             });
    };
    finite = finite_shifts(xs_, along_x_) && finite_shifts(ys_, along_y_);
  }

  bool finite = false;

  void collect(Collector& taps, Taps& taps_y, Taps& taps_x) const {
    taps_y.start(ys_.derivative, 0);
    taps_x.start(xs_.derivative, 0);
    for (int32_t b = 0, p = 0; p < ys_.bins; ++p)
      for (int32_t q = 0; q < xs_.bins; ++q, ++b) {
        if (!counts_) {
          taps.end_bin();
          continue;
        }
        average_taps(taps_y, bin_of(ys_, p, along_y_[b]));
        average_taps(taps_x, bin_of(xs_, q, along_x_[b]));
        const auto row = static_cast<size_t>(b);
        for (auto i = taps_y.begin[row]; i < taps_y.begin[row + 1]; ++i)
          for (auto j = taps_x.begin[row]; j < taps_x.begin[row + 1]; ++j)
            add(taps, tap(ys_, p, along_y_[b], taps_y, static_cast<size_t>(i)),
                tap(xs_, q, along_x_[b], taps_x, static_cast<size_t>(j)));
        taps.end_bin();
      }
  }

 private:
  // One tap of one axis: its weight, and how that follows the two edges of the box and the shift of the bin.
  struct Tap {
    int32_t cell;
    double weight, lo, hi, shift;
  };

  static Samples<T> bin_of(const Samples<T>& box, int32_t p, T shift) {
    Samples<T> bin = box;
    bin.start = (box.start + static_cast<T>(p) * box.bin) + box.size * shift;
    bin.bins = 1;
    bin.scale = 1;
    return bin;
  }
  static Tap tap(const Samples<T>& box, int32_t p, T shift, const Taps& taps, size_t i) {
    if (!box.derivative) return {taps.index[i], taps.weight[i], 0, 0, 0};
    const double starts = taps.dlo[i] + taps.dhi[i], grows = taps.dhi[i];  // if the bin moves, and if it is longer
    const double hi = (static_cast<double>(p) / box.bins + static_cast<double>(shift)) * starts + grows / box.bins;
    return {taps.index[i], taps.weight[i], box.scale * (starts - hi), box.scale * hi,
            static_cast<double>(box.size) * starts};
  }
  static void add(Collector& taps, const Tap& y, const Tap& x) {
    const Rates rates{x.lo * y.weight, x.weight * y.lo,    x.hi * y.weight,
                      x.weight * y.hi, x.shift * y.weight, x.weight * y.shift};
    taps.add({y.cell, x.cell}, y.weight * x.weight, rates.data());
  }

  Samples<T> ys_, xs_;
  bool counts_ = false;
  const T *along_x_, *along_y_;
};

}  // namespace roialign
