// Backward to the input: the transposed contractions, map += Ay^T grad Ax, and the scatter of the max kinds. Included
// only by kernels.cpp.
//
// A piece owns its channels of its rows of the map, and adds boxes in one fixed order: no atomics, and the same bits
// however the work is cut.
#pragma once

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
