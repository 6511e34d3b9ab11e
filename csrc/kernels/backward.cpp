// Backward to the input: the transposed contractions, map += Ay^T grad Ax, and the scatter of the max kinds.
//
// A piece owns its channels of its rows of the map, and adds boxes in one fixed order: no atomics, and the same bits
// however the work is cut.
#include "kernels/contract-inl.h"
#include "kernels/winners-inl.h"

namespace roialign::ROI_SET {

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

// Where the gradient of one channel block is accumulated: pixel (y, x) of the map lies at
// base + ((y - row) * width + x) * kLanes.
template <class A>
struct Sum {
  A* base;
  int64_t row, row_end, width;
  ROI_INLINE A* at(int64_t y, int64_t x) const { return base + ((y - row) * width + x) * kLanes<A>; }
};

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

template <class A>
static void max_back(const KernelArgs& args, const View<A>& view, const Box<A>& box, int lanes, int32_t first,
                     int32_t rows, const A* tile, const Sum<A>& sum) {
  constexpr int n = kLanes<A>;
  const Matrix<A>&ys = box.y.bins, &xs = box.x.bins;
  for (int32_t r = 0; r < rows; ++r)
    find_winners(args, view, box, first + r, false, [&](int32_t p, const Winners& winners) {
      const A* grad = tile + (int64_t{r} * args.pooled.width + p) * n;
      for (int c = 0; c < lanes; ++c) {
        const int32_t iy = winners.y[c], ix = winners.x[c];
        if (iy < 0) continue;
        if (args.kind == Kind::cells) {
          const int64_t y = box.y.cell[iy];
          if (y >= sum.row && y < sum.row_end) sum.at(y, box.x.cell[ix])[c] += grad[c];
          continue;
        }
        for (int32_t i = ys.begin[iy]; i < ys.begin[iy + 1]; ++i) {
          const int64_t y = box.y.cell[ys.index[i]];
          if (y < sum.row || y >= sum.row_end) continue;
          for (int32_t j = xs.begin[ix]; j < xs.begin[ix + 1]; ++j)
            sum.at(y, box.x.cell[xs.index[j]])[c] += ys.weight[i] * xs.weight[j] * grad[c];
        }
      }
    });
}

template <class A>
static void clear_rows(const Sum<A>& sum, int64_t from, int64_t to) {
  if (from < to) __builtin_memset(sum.at(from, 0), 0, static_cast<size_t>((to - from) * sum.width * kBlockBytes));
}

template <class S>
static void backward_input_piece(const KernelArgs& args, const Piece& piece) {
  using A = typename AccumulatorOf<S>::Type;
  constexpr int n = kLanes<A>;
  const auto* boxes = static_cast<const Box<A>*>(piece.boxes);
  const bool reads = kKinds[static_cast<int>(args.kind)].takes_maximum;
  auto* tile = reinterpret_cast<A*>(args.space.tile);
  auto* input = reinterpret_cast<A*>(args.space.second);
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
      for_each_tile(args, [&](int32_t first, int32_t rows) {
        fetch<S>(args, box.row, c, lanes, first, rows, tile);
        if (reads) {
          const View<A> view = pack_window<S>(piece.input, box, c, lanes, input);
          max_back(args, view, box, lanes, first, rows, tile, sum);
        } else {
          mean_back(args, box, first, rows, tile, sum);
        }
      });
    }
    advance(piece.row_end, piece.row_end);
  }
}

const Kernel backward_input_kernels[] = ROI_EACH_TYPE(backward_input_piece);

}  // namespace roialign::ROI_SET
