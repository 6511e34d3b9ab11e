// Pooled rows of one channel block of a map, or of one slice of a volume: means, greatest samples, greatest cells.
#pragma once

#include "kernels/contract-inl.h"

namespace roialign::ROI_SET {

// pixels[r][p] = sum over the taps of row p of `bins`, for `rows` strips. One read of the weights serves all strips.
template <class A, int N>
static void contract_columns_fixed(const Matrix<A>& bins, int32_t count, const A* strips, int64_t strip, int32_t rows,
                                   A* pixels) {
  constexpr int n = kLanes<A>;
  for (int32_t p = 0; p < count; ++p) {
    int64_t at[N];
    A weight[N];
    for (int t = 0; t < N; ++t) {
      at[t] = int64_t{bins.index[p * N + t]} * n;
      weight[t] = bins.weight[p * N + t];
    }
    const A* from = strips;
    A* to = pixels + p * n;
    for (int32_t r = 0; r < rows; ++r, from += strip, to += count * n) {
      Lanes<A> sum = Lanes<A>::load(from + at[0]).times(weight[0]);
      for (int t = 1; t < N; ++t) sum.add_times(weight[t], Lanes<A>::load(from + at[t]));
      sum.store(to);
    }
  }
}

template <class A>
static void contract_columns(const Matrix<A>& bins, int32_t uniform, int32_t count, const A* strips, int64_t strip,
                             int32_t rows, A* pixels) {
  constexpr int n = kLanes<A>;
  switch (uniform) {
    case 1:
      return contract_columns_fixed<A, 1>(bins, count, strips, strip, rows, pixels);
    case 2:
      return contract_columns_fixed<A, 2>(bins, count, strips, strip, rows, pixels);
    case 3:
      return contract_columns_fixed<A, 3>(bins, count, strips, strip, rows, pixels);
    case 4:
      return contract_columns_fixed<A, 4>(bins, count, strips, strip, rows, pixels);
    default:
      break;
  }
  for (int32_t p = 0; p < count; ++p) {
    const int32_t first = bins.begin[p], end = bins.begin[p + 1];
    int32_t r = 0;
    for (; r + 4 <= rows; r += 4) {
      Lanes<A> sum[4];
      for (int k = 0; k < 4; ++k) sum[k] = Lanes<A>::fill(0);
      for (int32_t t = first; t < end; ++t) {
        const A* from = strips + r * strip + int64_t{bins.index[t]} * n;
        for (int k = 0; k < 4; ++k) sum[k].add_times(bins.weight[t], Lanes<A>::load(from + k * strip));
      }
      for (int k = 0; k < 4; ++k) sum[k].store(pixels + (int64_t{r + k} * count + p) * n);
    }
    for (; r < rows; ++r) contract_column(bins, p, strips + r * strip).store(pixels + (int64_t{r} * count + p) * n);
  }
}

template <class A>
static void mean_rows(const KernelArgs& args, const View<A>& view, const Box<A>& box, int32_t first, int32_t rows,
                      A* tile) {
  auto* strips = reinterpret_cast<A*>(args.space.strips);
  const int64_t strip = int64_t{box.x.touched} * kLanes<A>;
  for (int32_t r = 0; r < rows; ++r) contract_row(view, box, first + r, strips + r * strip);
  contract_columns(box.x.bins, box.x.uniform, args.pooled.width, strips, strip, rows, tile);
}

// The greatest sample of each bin, an outside sample counting 0; NaN wins. Strips are the rows of samples.
template <class A>
static void max_rows(const KernelArgs& args, const View<A>& view, const Box<A>& box, int32_t first, int32_t rows,
                     A* tile) {
  constexpr int n = kLanes<A>;
  auto* strip = reinterpret_cast<A*>(args.space.strips);
  for (int32_t r = 0; r < rows; ++r) {
    const int32_t from = box.y.group[first + r], to = box.y.group[first + r + 1];
    A* line = tile + int64_t{r} * args.pooled.width * n;
    for (int32_t i = 0; i < args.pooled.width * n; ++i) line[i] = from < to ? -A(__builtin_inf()) : A(0);
    for (int32_t iy = from; iy < to; ++iy) {
      contract_row(view, box, iy, strip);
      for (int32_t p = 0; p < args.pooled.width; ++p) {
        A* best = line + p * n;
        if (box.x.group[p] == box.x.group[p + 1]) Lanes<A>::fill(0).store(best);
        Lanes<A> greatest = Lanes<A>::load(best);
        for (int32_t ix = box.x.group[p]; ix < box.x.group[p + 1]; ++ix)
          greatest.raise(contract_column(box.x.bins, ix, strip));
        greatest.store(best);
      }
    }
  }
}

// The greatest cell of each bin; NaN wins.
template <class A>
static void cell_rows(const KernelArgs& args, const View<A>& view, const Box<A>& box, int32_t first, int32_t rows,
                      A* tile) {
  constexpr int n = kLanes<A>;
  const Matrix<A>&ys = box.y.bins, &xs = box.x.bins;
  for (int32_t r = 0; r < rows; ++r)
    for (int32_t p = 0; p < args.pooled.width; ++p) {
      const bool empty = ys.begin[first + r] == ys.begin[first + r + 1] || xs.begin[p] == xs.begin[p + 1];
      Lanes<A> best = Lanes<A>::fill(empty ? A(0) : -A(__builtin_inf()));
      for (int32_t i = ys.begin[first + r]; i < ys.begin[first + r + 1]; ++i)
        for (int32_t j = xs.begin[p]; j < xs.begin[p + 1]; ++j)
          best.raise(Lanes<A>::load(view.at(box, ys.index[i], xs.index[j])));
      best.store(tile + (int64_t{r} * args.pooled.width + p) * n);
    }
}

}  // namespace roialign::ROI_SET
