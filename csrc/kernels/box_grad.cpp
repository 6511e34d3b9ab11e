// Backward to the boxes: the same contractions with one axis matrix replaced by its derivative.
#include "kernels/gradients-inl.h"
#include "kernels/winners-inl.h"

namespace roialign::ROI_SET {

// What mean_box_grad adds, for the first greatest sample of each bin, lane by lane. `values` has the cells that make
// the slope.
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
        result.add_times(static_cast<double>(grad[c]), part);
      }
    });
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
    auto box_grad = [&](const View<A>& values) {
      BoxGrad result;
      for_each_tile(args, [&](int32_t first, int32_t rows) {
        fetch<S>(args, box.row, channel, lanes, first, rows, tile);
        if (args.kind == Kind::max)
          max_box_grad(args, view, values, box, lanes, first, rows, tile, result);
        else
          mean_box_grad(args, values, box, first, rows, tile, result);
      });
      return result;
    };
    BoxGrad part = box_grad(view);
    if (!part.finite())
      part = box_grad(pack_finite<S>(piece.input, box, channel, lanes, reinterpret_cast<A*>(args.space.second)));
    part.add_to(args, piece, i);
  });
}

const Kernel backward_boxes_kernels[] = ROI_EACH_TYPE(backward_boxes_piece);

}  // namespace roialign::ROI_SET
