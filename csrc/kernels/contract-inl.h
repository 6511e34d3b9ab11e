// What the directions share: sums of rows and of columns, weighted by the axis matrices, and the walk over a piece.
#pragma once

#include "kernels/edge-inl.h"

namespace roialign::ROI_SET {

// to[i] = sum over taps t of weight[t] * row[t][i], for `count` pixels.
template <class A, int N>
static ROI_INLINE void sum_rows_fixed(const A* const* row, const A* weight, int64_t pixel, int64_t count, A* to) {
  Lanes<A> w[N];  // in registers: the compiler cannot know that `to` is not where the weights are
  for (int t = 0; t < N; ++t) w[t] = Lanes<A>::fill(weight[t]);
  for (int64_t i = 0; i < count; ++i) {
    Lanes<A> sum = Lanes<A>::load(row[0] + i * pixel).times(w[0]);
    for (int t = 1; t < N; ++t) sum.add_product(w[t], Lanes<A>::load(row[t] + i * pixel));
    sum.store(to + i * kLanes<A>);
  }
}

template <class A>
static ROI_INLINE void sum_rows(const View<A>& view, const int32_t* cell, const int32_t* index, const A* weight,
                                int32_t taps, const Run& run, A* to) {
  constexpr int n = kLanes<A>;
  const int64_t x = (view.compact ? run.at : run.cell) * view.pixel, count = run.count;
  auto row_at = [&](int32_t t) {
    const int32_t position = index[t];
    return view.base + (view.compact ? position : cell[position]) * view.row + x;
  };
  to += int64_t{run.at} * n;
  if (taps <= 4) {
    const A* row[4];
    for (int32_t t = 0; t < taps; ++t) row[t] = row_at(t);
    if (taps == 1) return sum_rows_fixed<A, 1>(row, weight, view.pixel, count, to);
    if (taps == 2) return sum_rows_fixed<A, 2>(row, weight, view.pixel, count, to);
    if (taps == 3) return sum_rows_fixed<A, 3>(row, weight, view.pixel, count, to);
    if (taps == 4) return sum_rows_fixed<A, 4>(row, weight, view.pixel, count, to);
    for (int64_t i = 0; i < count; ++i) Lanes<A>::fill(0).store(to + i * n);
    return;
  }
  int64_t i = 0;
  for (; i + 4 <= count; i += 4) {  // four sums at once hide the latency of each
    Lanes<A> sum[4];
    for (int k = 0; k < 4; ++k) sum[k] = Lanes<A>::fill(0);
    for (int32_t t = 0; t < taps; ++t) {
      const A* row = row_at(t) + i * view.pixel;
      for (int k = 0; k < 4; ++k) sum[k].add_times(weight[t], Lanes<A>::load(row + k * view.pixel));
    }
    for (int k = 0; k < 4; ++k) sum[k].store(to + (i + k) * n);
  }
  for (; i < count; ++i) {
    Lanes<A> sum = Lanes<A>::fill(0);
    for (int32_t t = 0; t < taps; ++t) sum.add_times(weight[t], Lanes<A>::load(row_at(t) + i * view.pixel));
    sum.store(to + i * n);
  }
}

// One row of an axis matrix times the map: a strip of all touched columns.
template <class A>
static ROI_INLINE void contract_row(const View<A>& view, const Box<A>& box, int32_t row, A* strip) {
  const int32_t first = box.y.bins.begin[row], taps = box.y.bins.begin[row + 1] - first;
  const int32_t *index = box.y.bins.index + first, *cell = box.y.cell;
  const A* weight = box.y.bins.weight + first;
  if (view.compact) {
    const Run all{0, 0, box.x.touched};
    return sum_rows(view, cell, index, weight, taps, all, strip);
  }
  for (int32_t r = 0; r < box.x.runs; ++r) sum_rows(view, cell, index, weight, taps, box.x.run[r], strip);
}

// The sum over the taps of one row of `bins`, of one strip.
template <class A>
static ROI_INLINE Lanes<A> contract_column(const Matrix<A>& bins, int32_t row, const A* strip) {
  Lanes<A> sum = Lanes<A>::fill(0);
  for (int32_t t = bins.begin[row]; t < bins.begin[row + 1]; ++t)
    sum.add_times(bins.weight[t], Lanes<A>::load(strip + int64_t{bins.index[t]} * kLanes<A>));
  return sum;
}

// strips[r][i] = sum over the bins p of touched column i of weight * pixels[r][p]: `rows` rows of grad Ax.
template <class A>
static void spread_columns(const Axis<A>& x, int32_t width, const A* pixels, int32_t rows, A* strips) {
  constexpr int n = kLanes<A>;
  const int64_t strip = int64_t{x.touched} * n, line = int64_t{width} * n;
  for (int32_t i = 0; i < x.touched; ++i) {
    const int32_t first = x.cells.begin[i], taps = x.cells.begin[i + 1] - first;
    const int32_t* index = x.cells.index + first;
    const A* weight = x.cells.weight + first;
    A* to = strips + int64_t{i} * n;
    if (taps <= 2) {  // by far the most common
      const A *a = pixels + index[0] * n, *b = pixels + index[taps - 1] * n;
      const Lanes<A> u = Lanes<A>::fill(weight[0]), v = Lanes<A>::fill(weight[taps - 1]);
      for (int32_t r = 0; r < rows; ++r) {
        Lanes<A> sum = Lanes<A>::load(a + r * line).times(u);
        if (taps == 2) sum.add_product(v, Lanes<A>::load(b + r * line));
        sum.store(to + r * strip);
      }
      continue;
    }
    for (int32_t r = 0; r < rows; ++r) {
      const A* from = pixels + r * line;
      Lanes<A> sum = Lanes<A>::load(from + index[0] * n).times(weight[0]);
      for (int32_t t = 1; t < taps; ++t) sum.add_times(weight[t], Lanes<A>::load(from + index[t] * n));
      sum.store(to + r * strip);
    }
  }
}

// Where a lane is not finite, 0.
template <class A>
static ROI_INLINE Lanes<A> finite_lanes(const Lanes<A>& lanes) {
  A values[kLanes<A>];
  lanes.store(values);
  for (A& value : values) value = value - value == 0 ? value : A(0);
  return Lanes<A>::load(values);
}

static inline int lanes_at(const Piece& piece, int64_t channel, int most) {
  return static_cast<int>(piece.channel_end - channel < most ? piece.channel_end - channel : most);
}

template <class A>
static inline int64_t last_row(const Box<A>& box) {
  return box.y.touched ? box.y.cell[box.y.touched - 1] + 1 : 0;
}

// Calls visit(view, box index, channel, lanes) for every box and channel block of the piece.
template <class S, class A, class Visit>
static ROI_INLINE void for_each_block(const KernelArgs& args, const Piece& piece, Visit&& visit) {
  constexpr int n = kLanes<A>;
  const Map& map = piece.input;
  const auto* boxes = static_cast<const Box<A>*>(piece.boxes);
  auto* block = reinterpret_cast<A*>(args.space.block);
  if (piece.access == Access::whole) {
    for (int64_t c = piece.channel; c < piece.channel_end; c += n) {
      const int lanes = lanes_at(piece, c, n);
      // Boxes come ordered by their first row, so each row is packed just before it is needed, and is still in the
      // cache then.
      int64_t packed = piece.box_count && boxes[0].y.touched ? boxes[0].y.cell[0] : 0;
      for (int64_t i = 0; i < piece.box_count; ++i) {
        const int64_t needed = last_row(boxes[i]);
        pack_rows<S>(map, c, lanes, packed, needed, block);
        packed = packed > needed ? packed : needed;
        visit(View<A>{block, map.width * n, n, false}, i, c, lanes);
      }
    }
    return;
  }
  for (int64_t i = 0; i < piece.box_count; ++i)
    for (int64_t c = piece.channel; c < piece.channel_end; c += n) {
      const int lanes = lanes_at(piece, c, n);
      if constexpr (sizeof(S) == sizeof(A)) {
        if (piece.access == Access::direct && lanes == n) {
          const auto* base = reinterpret_cast<const A*>(map.data) + c;
          visit(View<A>{base, map.row_stride, map.pixel_stride, false}, i, c, lanes);
          continue;
        }
      }
      visit(pack_window<S>(map, boxes[i], c, lanes, block), i, c, lanes);
    }
}

// Where the gradient of one channel block is accumulated: pixel (y, x) of the map lies at
// base + ((y - row) * width + x) * kLanes.
template <class A>
struct Sum {
  A* base;
  int64_t row, row_end, width;
  ROI_INLINE A* at(int64_t y, int64_t x) const { return base + ((y - row) * width + x) * kLanes<A>; }
};

template <class A>
static void clear_rows(const Sum<A>& sum, int64_t from, int64_t to) {
  if (from < to) __builtin_memset(sum.at(from, 0), 0, static_cast<size_t>((to - from) * sum.width * kBlockBytes));
}

// Calls visit(sum, box, channel, lanes) for every box that touches the piece's rows of the gradient to the map, and
// writes these rows, channel block by channel block.
//
// A piece owns its channels of its rows of the map, and adds boxes in one fixed order: no atomics, and the same bits
// however the work is cut.
template <class S, class A, class Visit>
static ROI_INLINE void for_each_sum(const KernelArgs& args, const Piece& piece, Visit&& visit) {
  constexpr int n = kLanes<A>;
  const auto* boxes = static_cast<const Box<A>*>(piece.boxes);
  for (int64_t c = piece.channel; c < piece.channel_end; c += n) {
    const int lanes = lanes_at(piece, c, n);
    const Sum<A> sum{reinterpret_cast<A*>(args.space.block), piece.row, piece.row_end, piece.grad.width};
    // Boxes come ordered by their first row: rows above it are finished, rows below the last one not yet begun.
    int64_t begun = piece.row, finished = piece.row;
    auto advance = [&](int64_t least, int64_t most) {
      least = least < piece.row_end ? least : piece.row_end;
      most = most < piece.row_end ? most : piece.row_end;
      if (most > begun) {
        piece.add ? pack_rows<S>(piece.grad, c, lanes, begun, most, sum.at(0, 0)) : clear_rows(sum, begun, most);
        begun = most;
      }
      // Several rows at a time: a transpose of a short row is mostly rest.
      if (least - finished >= 8 || least == piece.row_end) {
        unpack_rows<S>(piece.grad, c, lanes, finished, least, sum.at(finished, 0));
        finished = least;
      }
    };
    for (int64_t i = 0; i < piece.box_count; ++i) {
      const Box<A>& box = boxes[i];
      if (!box.y.touched || !box.x.touched) continue;
      const int64_t top = box.y.cell[0], bottom = last_row(box);
      if (top >= piece.row_end) break;
      if (bottom <= piece.row) continue;
      advance(top, bottom);
      if (i + 1 < piece.box_count) fetch_ahead<S>(args, boxes[i + 1].row, c, lanes);
      visit(sum, box, c, lanes);
    }
    advance(piece.row_end, piece.row_end);
  }
}

}  // namespace roialign::ROI_SET
