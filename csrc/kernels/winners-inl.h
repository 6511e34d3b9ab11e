// Where the maxima lie, found again for both gradients.
#pragma once

#include "kernels/contract-inl.h"

namespace roialign::ROI_SET {

template <class A>
static ROI_INLINE void challenge(const A* value, int32_t y, int32_t x, A* best, Winners& winners) {
  for (int c = 0; c < kLanes<A>; ++c) {
    const bool wins = (value[c] > best[c]) | ((value[c] != value[c]) & (best[c] == best[c])) | (winners.y[c] < 0);
    best[c] = wins ? value[c] : best[c];
    winners.y[c] = wins ? y : winners.y[c];
    winners.x[c] = wins ? x : winners.x[c];
  }
}

// The value of one sample of one channel, by the cells that weigh something: tables with derivatives also list others.
template <class A>
static A weighed(const View<A>& view, const Box<A>& box, int32_t iy, int32_t ix, int c) {
  const Matrix<A>&ys = box.y.bins, &xs = box.x.bins;
  A sum = 0;
  for (int32_t i = ys.begin[iy]; i < ys.begin[iy + 1]; ++i)
    for (int32_t j = xs.begin[ix]; j < xs.begin[ix + 1]; ++j) {
      if (ys.weight[i] == 0 || xs.weight[j] == 0) continue;
      sum += ys.weight[i] * (xs.weight[j] * view.at(box, ys.index[i], xs.index[j])[c]);
    }
  return sum;
}

// Finds the winners of every bin of pooled row `r` and hands them to visit(p, winners). `careful`: leave out cells of
// weight zero one by one.
template <class A, class Visit>
static void find_winners(const KernelArgs& args, const View<A>& view, const Box<A>& box, int32_t r, bool careful,
                         Visit&& visit) {
  constexpr int n = kLanes<A>;
  const bool samples = args.kind == Kind::max;
  const Axis<A>&ys = box.y, &xs = box.x;
  const int32_t from = samples ? ys.group[r] : ys.bins.begin[r];
  const int32_t to = samples ? ys.group[r + 1] : ys.bins.begin[r + 1];
  auto* strip = reinterpret_cast<A*>(args.space.strips);
  const int32_t width = args.pooled.width;
  auto* best = reinterpret_cast<A*>(args.space.best);
  auto* winners = reinterpret_cast<Winners*>(args.space.winners);
  for (int32_t p = 0; p < width; ++p)
    for (int c = 0; c < n; ++c) winners[p].y[c] = winners[p].x[c] = -1;
  for (int32_t iy = from; iy < to; ++iy) {
    if (samples) contract_row(view, box, iy, strip);
    for (int32_t p = 0; p < width; ++p) {
      const int32_t left = samples ? xs.group[p] : xs.bins.begin[p];
      const int32_t right = samples ? xs.group[p + 1] : xs.bins.begin[p + 1];
      for (int32_t ix = left; ix < right; ++ix) {
        if (!samples) {
          const int32_t i = ys.bins.index[iy], j = xs.bins.index[ix];
          challenge(view.at(box, i, j), i, j, best + p * n, winners[p]);
          continue;
        }
        A v[n];
        contract_column(xs.bins, ix, strip).store(v);
        for (int c = 0; careful && c < n; ++c) v[c] = weighed(view, box, iy, ix, c);
        challenge(v, iy, ix, best + p * n, winners[p]);
      }
    }
  }
  for (int32_t p = 0; p < width; ++p) visit(p, winners[p]);
}

}  // namespace roialign::ROI_SET
