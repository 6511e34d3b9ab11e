// Bins that have channels of their own, in the planes of these channels: what they come to, and the transpose.
#pragma once

#include "kernels/span-inl.h"

namespace roialign::ROI_SET {

// Rows [row, row_end) of the planes of one bin of some channels, without gaps: the map's, or copies.
template <class A>
struct Planes {
  A* data;
  int64_t channel, bin;         // from one channel's to the next one's, from one bin's to the next one's
  int64_t width, row, row_end;  // width: kBinColumns or more
};

// Where a span begins that has this column.
static ROI_INLINE int64_t first_column(int64_t x, int64_t width) {
  return x < width - kBinColumns ? x : width - kBinColumns;
}

// Calls visit(first column, weights) for the columns of any bin, kBinColumns of them at a time.
template <class A, class Visit>
static ROI_INLINE void for_each_stretch(const Box<A>& box, int32_t q, int64_t width, Visit&& visit) {
  const Matrix<A>& xs = box.x.bins;
  for (int32_t j = xs.begin[q], end = xs.begin[q + 1]; j < end;) {
    const int64_t at = first_column(box.x.cell[xs.index[j]], width);
    A weight[kBinColumns] = {};
    for (; j < end && box.x.cell[xs.index[j]] < at + kBinColumns; ++j)
      weight[box.x.cell[xs.index[j]] - at] = xs.weight[j];
    visit(at, Span<A>::load(weight));
  }
}

// What any bin comes to, as a span whose sum it is, and the transpose of it.
template <class A>
static __attribute__((noinline)) void sum_many(const Planes<A>& planes, const Box<A>& box, int32_t p, int32_t q,
                                               int64_t channel, A* to) {
  if (!box.finite) return Span<A>::fill(A(__builtin_nan(""))).store(to);
  const Matrix<A>& ys = box.y.bins;
  const A* plane = planes.data + channel * planes.channel;
  Span<A> total{};
  for_each_stretch(box, q, planes.width, [&](int64_t x, const Span<A>& weight) {
    Span<A> sum{};
    for (int32_t i = ys.begin[p]; i < ys.begin[p + 1]; ++i)
      sum.add_times(ys.weight[i], Span<A>::load(plane + box.y.cell[ys.index[i]] * planes.width + x));
    total.add_weighted(sum, weight);
  });
  total.store(to);
}

template <class A>
static __attribute__((noinline)) void add_many(const Planes<A>& planes, const Box<A>& box, int32_t p, int32_t q,
                                               int64_t channel, A grad) {
  if (!box.finite) return;
  const Matrix<A>& ys = box.y.bins;
  A* plane = planes.data + channel * planes.channel;
  for_each_stretch(box, q, planes.width, [&](int64_t x, const Span<A>& weight) {
    const Span<A> part = Span<A>::fill(grad).weighted(weight);
    for (int32_t i = ys.begin[p]; i < ys.begin[p + 1]; ++i) {
      const int64_t y = box.y.cell[ys.index[i]];
      if (y >= planes.row && y < planes.row_end) part.add_to(ys.weight[i], plane + (y - planes.row) * planes.width + x);
    }
  });
}

// The planes that are read next, fetched a little with each few boxes: their order tells the processor nothing.
template <class A>
struct Ahead {
  static constexpr int64_t line = kLineBytes / static_cast<int64_t>(sizeof(A));
  const A* next;
  int64_t step, size, share, at = 0;

  Ahead(const Planes<A>& planes, const A* next_, int64_t boxes)
      : next(next_), step(planes.channel), size(planes.row_end * planes.width) {
    if (!next || size / line > 4 * boxes) size = 0;  // few boxes leave most of a plane alone
    share = (size * kBinColumns / boxes / line + 1) * line;
  }
  ROI_INLINE void fetch(int channels) {
    const int64_t end = at + share < size ? at + share : size;
    for (int c = 0; c < channels; ++c)
      for (int64_t i = at; i < end; i += line) __builtin_prefetch(next + c * step + i, 0, 2);
    at = end;
  }
};

// to[c * to_step + k] = what the bin of box k comes to in plane c, for bins that all touch as many rows.
template <class A, int channels, int taps>
static void sum_class(const Planes<A>& planes, const Box<A>* boxes, const BinRows<A>* row, int32_t count, int32_t p,
                      int32_t q, const int32_t* column, const A* weight, A* to, int64_t to_step, Ahead<A>& ahead) {
  alignas(kLineBytes) A stage[channels][kBinColumns * kBinColumns] = {};
  const A* const plane = planes.data;
  const int64_t step = planes.channel;
  for (int32_t first = 0; first < count; first += kBinColumns, row += kBinColumns) {
    const int32_t some = count - first < kBinColumns ? count - first : kBinColumns;
    ahead.fetch(channels);
    for (int32_t i = 0; i < some; ++i) {
      const int32_t k = row[i].box, x = column[k];
      if (!taps || x < 0) {
        for (int c = 0; c < channels; ++c) sum_many(planes, boxes[k], p, q, c, &stage[c][i * kBinColumns]);
        continue;
      }
      const Span<A> w = Span<A>::load(weight + int64_t{k} * kBinColumns);
      const A* from = plane + x;
      for (int c = 0; c < channels; ++c, from += step) {
        Span<A> sum{};  // not the first product, which a compiler may fuse with the second one
        for (int t = 0; t < taps; ++t) sum.add_times(row[i].weight[t], Span<A>::load(from + row[i].at[t]));
        sum.weighted(w).store(&stage[c][i * kBinColumns]);
      }
    }
    for (int c = 0; c < channels; ++c) {
      A sums[kBinColumns];
      sum_spans(stage[c], sums);
      for (int32_t i = 0; i < some; ++i) to[c * to_step + row[i].box] = sums[i];
    }
  }
}

// The same of all boxes' bins (p, q). The planes at `next` are those of the next bin, if any.
template <class A, int channels>
static void sum_bins(const Planes<A>& planes, const Bins<A>& bins, const Box<A>* boxes, int32_t p, int32_t q, A* to,
                     int64_t to_step, const A* next) {
  const BinRows<A>* rows = bins.rows + p * bins.boxes;
  const int32_t *column = bins.column + q * bins.boxes, *ends = bins.ends + p * (kBinRows + 1);
  const A* weight = bins.weight + q * bins.boxes * kBinColumns;
  Ahead<A> ahead(planes, next, bins.boxes);
  auto run = [&](auto* f, int taps) {
    const int32_t first = taps ? ends[taps - 1] : 0;
    f(planes, boxes, rows + first, ends[taps] - first, p, q, column, weight, to, to_step, ahead);
  };
  run(sum_class<A, channels, 0>, 0);
  run(sum_class<A, channels, 1>, 1);
  run(sum_class<A, channels, 2>, 2);
  run(sum_class<A, channels, 3>, 3);
  run(sum_class<A, channels, 4>, 4);
}

// The transposes: add the gradient grad[c * grad_step + k] of each bin to the cells of its plane.
template <class A, int channels, int taps>
static void add_class(const Planes<A>& planes, const Box<A>* boxes, const BinRows<A>* row, int32_t count, int32_t p,
                      int32_t q, const int32_t* column, const A* weight, const A* grad, int64_t grad_step) {
  const int64_t step = planes.channel, top = planes.row * planes.width, bottom = planes.row_end * planes.width;
  A* const plane = planes.data - top;
  for (const BinRows<A>* end = row + count; row < end; ++row) {
    const int32_t k = row->box;
    const int64_t x = column[k];
    if (!taps || (x | (row->at[0] - top) | (bottom - 1 - row->at[taps ? taps - 1 : 0])) < 0) {
      for (int c = 0; c < channels; ++c) add_many(planes, boxes[k], p, q, c, grad[c * grad_step + k]);
      continue;
    }
    const Span<A> w = Span<A>::load(weight + int64_t{k} * kBinColumns);
    A* to = plane + x;
    for (int c = 0; c < channels; ++c, to += step) {
      const Span<A> part = Span<A>::fill(grad[c * grad_step + k]).weighted(w);
      for (int t = 0; t < taps; ++t) part.add_to(row->weight[t], to + row->at[t]);
    }
  }
}

template <class A, int channels>
static void add_bins(const Planes<A>& planes, const Bins<A>& bins, const Box<A>* boxes, int32_t p, int32_t q,
                     const A* grad, int64_t grad_step) {
  const BinRows<A>* rows = bins.rows + p * bins.boxes;
  const int32_t *column = bins.column + q * bins.boxes, *ends = bins.ends + p * (kBinRows + 1);
  const A* weight = bins.weight + q * bins.boxes * kBinColumns;
  auto run = [&](auto* f, int taps) {
    const int32_t first = taps ? ends[taps - 1] : 0;
    f(planes, boxes, rows + first, ends[taps] - first, p, q, column, weight, grad, grad_step);
  };
  run(add_class<A, channels, 0>, 0);
  run(add_class<A, channels, 1>, 1);
  run(add_class<A, channels, 2>, 2);
  run(add_class<A, channels, 3>, 3);
  run(add_class<A, channels, 4>, 4);
}

}  // namespace roialign::ROI_SET
