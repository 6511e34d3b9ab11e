// Backward to the input: the transposed contractions, map += Ay^T grad Ax, and the scatter of the max kinds.
#include "kernels/gradients-inl.h"
#include "kernels/winners-inl.h"

namespace roialign::ROI_SET {

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

template <class S>
static void backward_input_piece(const KernelArgs& args, const Piece& piece) {
  using A = typename AccumulatorOf<S>::Type;
  const bool reads = info(args.kind).takes_maximum;
  auto* tile = reinterpret_cast<A*>(args.space.tile);
  auto* input = reinterpret_cast<A*>(args.space.second);
  for_each_sum<S, A>(args, piece, [&](const Sum<A>& sum, const Box<A>& box, int64_t channel, int lanes) {
    for_each_tile(args, [&](int32_t first, int32_t rows) {
      fetch<S>(args, box.row, channel, lanes, first, rows, tile);
      if (reads) {
        const View<A> view = pack_window<S>(piece.input, box, channel, lanes, input);
        max_back(args, view, box, lanes, first, rows, tile, sum);
      } else {
        mean_back(args, box, first, rows, tile, sum);
      }
    });
  });
}

const Kernel backward_input_kernels[] = ROI_EACH_TYPE(backward_input_piece);

}  // namespace roialign::ROI_SET
