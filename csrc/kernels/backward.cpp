// Backward to the input: the transposed contractions, map += Ay^T grad Ax, and the scatter of the max kinds.
//
// A piece owns its channels of its rows of the map, and adds boxes in one fixed order: no atomics, and the same bits
// however the work is cut.
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
