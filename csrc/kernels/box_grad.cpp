// Backward to the boxes: the same contractions with one axis matrix replaced by its derivative.
#include "kernels/contract-inl.h"
#include "kernels/winners-inl.h"

namespace roialign::ROI_SET {

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

// The same for the first greatest sample of each bin, lane by lane. `values` has the cells that make the slope.
template <class A>
static void max_box_grad(const KernelArgs& args, const View<A>& view, const View<A>& values, const Box<A>& box,
                         int lanes, int32_t first, int32_t rows, const A* tile, BoxGrad& result) {
  const Axis<A>&ys = box.y, &xs = box.x;
  for (int32_t r = 0; r < rows; ++r)
    find_winners(args, view, box, first + r, &values != &view, [&](int32_t p, const Winners& winners) {
      const A* grad = tile + (int64_t{r} * args.pooled.width + p) * kLanes<A>;
      for (int c = 0; c < lanes; ++c) {
        const int32_t iy = winners.y[c], ix = winners.x[c];
        if (iy < 0) continue;
        BoxGrad part{};
        for (int32_t i = ys.bins.begin[iy]; i < ys.bins.begin[iy + 1]; ++i)
          for (int32_t j = xs.bins.begin[ix]; j < xs.bins.begin[ix + 1]; ++j) {
            const auto value = static_cast<double>(values.at(box, ys.bins.index[i], xs.bins.index[j])[c]);
            part.y1 += static_cast<double>(ys.dlo[i] * xs.bins.weight[j]) * value;
            part.y2 += static_cast<double>(ys.dhi[i] * xs.bins.weight[j]) * value;
            part.x1 += static_cast<double>(ys.bins.weight[i] * xs.dlo[j]) * value;
            part.x2 += static_cast<double>(ys.bins.weight[i] * xs.dhi[j]) * value;
          }
        const auto g = static_cast<double>(grad[c]);
        result.y1 += part.y1 * g;
        result.y2 += part.y2 * g;
        result.x1 += part.x1 * g;
        result.x2 += part.x2 * g;
      }
    });
}

// A box's window without the cells that are not finite: they have no slope.
template <class S, class A>
static View<A> pack_finite(const Map& map, const Box<A>& box, int64_t channel, int lanes, A* block) {
  const View<A> view = pack_window<S>(map, box, channel, lanes, block);
  for (int64_t i = 0; i < int64_t{box.y.touched} * box.x.touched * kLanes<A>; ++i)
    if (block[i] - block[i] != 0) block[i] = 0;
  return view;
}

template <class S>
static void backward_boxes_piece(const KernelArgs& args, const Piece& piece) {
  using A = typename AccumulatorOf<S>::Type;
  const auto* boxes = static_cast<const Box<A>*>(piece.boxes);
  auto* tile = reinterpret_cast<A*>(args.space.tile);
  for_each_block<S, A>(args, piece, [&](const View<A>& view, int64_t i, int64_t channel, int lanes) {
    const Box<A>& box = boxes[i];
    if (i + 1 < piece.box_count && piece.access == Access::whole)
      fetch_ahead<S>(args, boxes[i + 1].row, channel, lanes);
    if (!box.y.touched || !box.x.touched) return;
    BoxGrad& result = piece.box_grad[i];
    const BoxGrad before = result;
    auto add = [&](const View<A>& values) {
      for_each_tile(args, [&](int32_t first, int32_t rows) {
        fetch<S>(args, box.row, channel, lanes, first, rows, tile);
        if (args.kind == Kind::max)
          max_box_grad(args, view, values, box, lanes, first, rows, tile, result);
        else
          mean_box_grad(args, values, box, first, rows, tile, result);
      });
    };
    add(view);
    const double sum = result.y1 + result.y2 + result.x1 + result.x2;
    if (sum - sum == 0) return;
    result = before;
    add(pack_finite<S>(piece.input, box, channel, lanes, reinterpret_cast<A*>(args.space.second)));
  });
}

const Kernel backward_boxes_kernels[] = ROI_EACH_TYPE(backward_boxes_piece);

}  // namespace roialign::ROI_SET
