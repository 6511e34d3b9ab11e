// Gradients of means over one channel block of a map, or of one slice of a volume.
#pragma once

#include "kernels/contract-inl.h"

namespace roialign::ROI_SET {

// The gradient to the edges of one box, in pixels.
struct BoxGrad {
  double x1 = 0, y1 = 0, x2 = 0, y2 = 0, z1 = 0, z2 = 0;

  bool finite() const {
    const double all = x1 + y1 + x2 + y2 + z1 + z2;
    return all - all == 0;
  }
  void add_times(double factor, const BoxGrad& other) {
    x1 += other.x1 * factor;
    y1 += other.y1 * factor;
    x2 += other.x2 * factor;
    y2 += other.y2 * factor;
    z1 += other.z1 * factor;
    z2 += other.z2 * factor;
  }
  // To what the piece has of its box i, on the axes that the map has.
  void add_to(const KernelArgs& args, const Piece& piece, int64_t i) const {
    const double lower[] = {x1, y1, z1}, upper[] = {x2, y2, z2};
    double* edges = piece.box_grad + i * 2 * args.rank;
    for (int axis = 0; axis < args.rank; ++axis) {
      edges[axis] += lower[axis];
      edges[args.rank + axis] += upper[axis];
    }
  }
};

// The bins [first, last) among those in row `r` of a transposed matrix, which lists them in increasing order.
template <class A>
static ROI_INLINE void bins_between(const Matrix<A>& cells, int32_t r, int32_t first, int32_t last, int32_t& from,
                                    int32_t& to) {
  from = cells.begin[r];
  to = cells.begin[r + 1];
  while (from < to && cells.index[from] < first) ++from;
  while (from < to && cells.index[to - 1] >= last) --to;
}

template <class A, int N>
static ROI_INLINE void add_rows_fixed(const A* const* row, const A* weight, int64_t count, A* to) {
  Lanes<A> w[N];  // in registers, as in sum_rows_fixed
  for (int t = 0; t < N; ++t) w[t] = Lanes<A>::fill(weight[t]);
  for (int64_t i = 0; i < count; ++i) {
    Lanes<A> sum = Lanes<A>::load(to + i * kLanes<A>);
    for (int t = 0; t < N; ++t) sum.add_product(w[t], Lanes<A>::load(row[t] + i * kLanes<A>));
    sum.store(to + i * kLanes<A>);
  }
}

// to[i] += sum over t of weight[t] * rows[index[t]][i]
template <class A>
static ROI_INLINE void add_rows(const A* rows, int64_t stride, const int32_t* index, const A* weight, int32_t taps,
                                int64_t count, A* to) {
  while (taps > 0) {
    const int32_t some = taps < 4 ? taps : 4;
    const A* row[4];
    for (int32_t t = 0; t < some; ++t) row[t] = rows + index[t] * stride;
    if (some == 1) add_rows_fixed<A, 1>(row, weight, count, to);
    if (some == 2) add_rows_fixed<A, 2>(row, weight, count, to);
    if (some == 3) add_rows_fixed<A, 3>(row, weight, count, to);
    if (some == 4) add_rows_fixed<A, 4>(row, weight, count, to);
    taps -= some;
    index += some;
    weight += some;
  }
}

template <class A>
static void mean_back(const KernelArgs& args, const Box<A>& box, int32_t first, int32_t rows, const A* tile,
                      const Sum<A>& sum) {
  auto* strips = reinterpret_cast<A*>(args.space.strips);
  const int64_t strip = int64_t{box.x.touched} * kLanes<A>;
  spread_columns(box.x, args.pooled.width, tile, rows, strips);
  for (int32_t i = 0; i < box.y.touched; ++i) {
    const int64_t y = box.y.cell[i];
    if (y < sum.row || y >= sum.row_end) continue;
    int32_t from, to;
    bins_between(box.y.cells, i, first, first + rows, from, to);
    for (int32_t r = 0; r < box.x.runs; ++r) {
      const Run& run = box.x.run[r];
      add_rows(strips + int64_t{run.at} * kLanes<A> - first * strip, strip, box.y.cells.index + from,
               box.y.cells.weight + from, to - from, run.count, sum.at(y, run.cell));
    }
  }
}

// Adds to result the derivatives of sum(grad * out) over one channel block.
//   along y: sum over p, t of dAy[p, t] * <map row t, (grad Ax) row p>
//   along x: sum over p, t of dAx[p, t] * <grad column p, (Ay map) column t>
template <class A>
static void mean_box_grad(const KernelArgs& args, const View<A>& view, const Box<A>& box, int32_t first, int32_t rows,
                          const A* tile, BoxGrad& result) {
  constexpr int n = kLanes<A>;
  const int32_t width = args.pooled.width;
  const int64_t strip = int64_t{box.x.touched} * n;
  auto* strips = reinterpret_cast<A*>(args.space.strips);       // grad Ax
  auto* pooled = reinterpret_cast<A*>(args.space.more_strips);  // Ay map
  spread_columns(box.x, width, tile, rows, strips);
  Lanes<A> y_lo = Lanes<A>::fill(0), y_hi = y_lo, x_lo = y_lo, x_hi = y_lo;
  const Matrix<A>&ys = box.y.bins, &xs = box.x.bins;
  for (int32_t r = 0; r < rows; ++r) {
    for (int32_t t = ys.begin[first + r]; t < ys.begin[first + r + 1]; ++t) {
      const int64_t y = view.compact ? ys.index[t] : box.y.cell[ys.index[t]];
      Lanes<A> dot = Lanes<A>::fill(0), dot2 = dot;
      for (int32_t k = 0; k < box.x.runs; ++k) {
        const Run& run = box.x.run[k];
        const A* map = view.base + y * view.row + (view.compact ? run.at : run.cell) * view.pixel;
        const A* grad = strips + r * strip + int64_t{run.at} * n;
        int64_t i = 0;
        for (; i + 2 <= run.count; i += 2) {
          dot.add_product(Lanes<A>::load(map + i * view.pixel), Lanes<A>::load(grad + i * n));
          dot2.add_product(Lanes<A>::load(map + (i + 1) * view.pixel), Lanes<A>::load(grad + (i + 1) * n));
        }
        if (i < run.count) dot.add_product(Lanes<A>::load(map + i * view.pixel), Lanes<A>::load(grad + i * n));
      }
      dot.add_times(1, dot2);
      y_lo.add_times(box.y.dlo[t], dot);
      y_hi.add_times(box.y.dhi[t], dot);
    }
    contract_row(view, box, first + r, pooled + r * strip);
  }
  for (int32_t p = 0; p < width; ++p)
    for (int32_t t = xs.begin[p]; t < xs.begin[p + 1]; ++t) {
      Lanes<A> dot = Lanes<A>::fill(0);
      for (int32_t r = 0; r < rows; ++r)
        dot.add_product(Lanes<A>::load(tile + (int64_t{r} * width + p) * n),
                        Lanes<A>::load(pooled + r * strip + int64_t{xs.index[t]} * n));
      x_lo.add_times(box.x.dlo[t], dot);
      x_hi.add_times(box.x.dhi[t], dot);
    }
  result.y1 += y_lo.sum();
  result.y2 += y_hi.sum();
  result.x1 += x_lo.sum();
  result.x2 += x_hi.sum();
}

}  // namespace roialign::ROI_SET
