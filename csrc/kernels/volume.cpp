// Volumes. Pooling is linear along depth, so a mean is the kernels of one map run on each touched slice, and a weighted
// sum of what they make, bin by bin; the gradients are its transpose.
#include "kernels/gradients-inl.h"
#include "kernels/volume-max-inl.h"

namespace roialign::ROI_SET {

// The part of one slice in the means of some bins.
template <class A>
static void add_slice(const KernelArgs& args, const View<A>& view, const Box<A>& box, int32_t position,
                      const Bins& bins, A* tile) {
  constexpr int n = kLanes<A>;
  const Matrix<A>& cells = box.z->cells;
  const int64_t pixels = int64_t{bins.rows} * args.pooled.width;
  auto* slice = reinterpret_cast<A*>(args.space.slice);
  int32_t from, to;
  bins_between(cells, position, bins.z, bins.z + bins.depth, from, to);
  mean_rows(args, view, box, bins.row, bins.rows, slice);
  for (; from < to; ++from) {
    const A* row[] = {slice};
    add_rows_fixed<A, 1>(row, cells.weight + from, pixels, tile + (cells.index[from] - bins.z) * pixels * n);
  }
}

template <class S, class A>
static void mean_bins(const KernelArgs& args, Slices<S, A>& slices, const Bins& bins, A* tile) {
  const Box<A>& box = slices.box;
  __builtin_memset(tile, 0, static_cast<size_t>(int64_t{bins.depth} * bins.rows * args.pooled.width * kBlockBytes));
  for (int32_t position = 0; position < box.z->touched; ++position) {
    int32_t from, to;
    bins_between(box.z->cells, position, bins.z, bins.z + bins.depth, from, to);
    if (from < to) add_slice(args, slices.at(position), box, position, bins, tile);
  }
}

// The means of all boxes, slice by slice: each is packed once, however many boxes touch it. The sums are those of
// mean_bins, in the same order.
template <class S, class A>
static void mean_by_slices(const KernelArgs& args, const Piece& piece) {
  constexpr int n = kLanes<A>;
  const Map& volume = piece.input;
  const auto* boxes = static_cast<const Box<A>*>(piece.boxes);
  auto *block = reinterpret_cast<A*>(args.space.block), *tiles = reinterpret_cast<A*>(args.space.tile);
  const Bins all{0, args.pooled.depth, 0, args.pooled.height};
  const int64_t row = piece.packed_row * n;
  for (int64_t c = piece.channel; c < piece.channel_end; c += n) {
    const int lanes = lanes_at(piece, c, n);
    for (int64_t first = 0; first < piece.box_count; first += piece.begun) {
      const int64_t left = piece.box_count - first, count = left < piece.begun ? left : piece.begun;
      int64_t end = 0;
      for (int64_t i = 0; i < count; ++i) {
        const Box<A>& box = boxes[first + i];
        const Lanes<A> fill = Lanes<A>::fill(box.finite ? A(0) : A(__builtin_nan("")));
        for (int64_t bin = 0; bin < args.pooled.size; ++bin) fill.store(tiles + (i * args.pooled.size + bin) * n);
        end = last_slice(box) > end ? last_slice(box) : end;
      }
      for (int64_t z = first_slice(boxes[first]); z < end; ++z) {
        bool packed = false;
        for (int64_t i = 0; i < count && first_slice(boxes[first + i]) <= z; ++i) {
          const Box<A>& box = boxes[first + i];
          const int32_t position = touches(box) ? position_of(*box.z, z) : -1;
          if (position < 0) continue;
          if (!packed)
            for (int64_t y = 0; y < volume.height; ++y)
              pack_cells<S>(slice_of<S>(volume, z), c, lanes, y, 0, volume.width, block + y * row);
          packed = true;
          add_slice(args, {block, row, n, false}, box, position, all, tiles + i * args.pooled.size * n);
        }
      }
      for (int64_t i = 0; i < count; ++i)
        emit<S>(args, boxes[first + i].row, c, lanes, 0, int64_t{all.depth} * all.rows,
                tiles + i * args.pooled.size * n);
    }
  }
}

// to = sum of weight[t] times slice index[t] of the tile, whose first is `first`.
template <class A>
static ROI_INLINE void sum_slices(const A* tile, int32_t first, int64_t pixels, const int32_t* index, const A* weight,
                                  int32_t taps, A* to) {
  constexpr int n = kLanes<A>;
  for (int64_t i = 0; i < pixels; ++i) {
    Lanes<A> sum = Lanes<A>::fill(0);
    for (int32_t t = 0; t < taps; ++t)
      sum.add_times(weight[t], Lanes<A>::load(tile + ((index[t] - first) * pixels + i) * n));
    sum.store(to + i * n);
  }
}

// The gradient of one slice's tile, spread over the slice.
template <class A>
static void mean_bins_back(const KernelArgs& args, const Box<A>& box, const Bins& bins, const A* tile, int32_t position,
                           const Sum<A>& sum) {
  const Matrix<A>& cells = box.z->cells;
  const int64_t pixels = int64_t{bins.rows} * args.pooled.width;
  auto* slice = reinterpret_cast<A*>(args.space.slice);
  int32_t from, to;
  bins_between(cells, position, bins.z, bins.z + bins.depth, from, to);
  if (from == to) return;
  sum_slices(tile, bins.z, pixels, cells.index + from, cells.weight + from, to - from, slice);
  mean_back(args, box, bins.row, bins.rows, slice, sum);
}

template <class S, class A>
static void mean_bins_box_grad(const KernelArgs& args, Slices<S, A>& slices, const Bins& bins, const A* tile,
                               BoxGrad& result) {
  constexpr int n = kLanes<A>;
  const Box<A>& box = slices.box;
  const Axis<A>& z = *box.z;
  const int32_t width = args.pooled.width;
  const int64_t pixels = int64_t{bins.rows} * width, strip = int64_t{box.x.touched} * n;
  auto* slice = reinterpret_cast<A*>(args.space.slice);
  A *lower = slice + pixels * n, *upper = lower + pixels * n;  // the gradient as the depth's two edges move
  const auto* strips = reinterpret_cast<const A*>(args.space.more_strips);
  for (int32_t position = 0; position < z.touched; ++position) {
    int32_t from, to;
    bins_between(z.cells, position, bins.z, bins.z + bins.depth, from, to);
    if (from == to) continue;
    sum_slices(tile, bins.z, pixels, z.cells.index + from, z.cells.weight + from, to - from, slice);
    __builtin_memset(lower, 0, static_cast<size_t>(2 * pixels * kBlockBytes));
    for (; from < to; ++from) {
      const int32_t p = z.cells.index[from];
      int32_t tap = z.bins.begin[p];
      while (z.bins.index[tap] != position) ++tap;
      const A* row[] = {tile + (p - bins.z) * pixels * n};
      add_rows_fixed<A, 1>(row, z.dlo + tap, pixels, lower);
      add_rows_fixed<A, 1>(row, z.dhi + tap, pixels, upper);
    }
    mean_box_grad(args, slices.at(position), box, bins.row, bins.rows, slice, result);
    Lanes<A> z_lo = Lanes<A>::fill(0), z_hi = z_lo;
    for (int32_t r = 0; r < bins.rows; ++r)
      for (int32_t q = 0; q < width; ++q) {
        const Lanes<A> pooled = contract_column(box.x.bins, q, strips + r * strip);
        const int64_t at = (int64_t{r} * width + q) * n;
        z_lo.add_product(pooled, Lanes<A>::load(lower + at));
        z_hi.add_product(pooled, Lanes<A>::load(upper + at));
      }
    result.z1 += z_lo.sum();
    result.z2 += z_hi.sum();
  }
}

// --- the three directions ---

template <class S>
static void volume_forward_piece(const KernelArgs& args, const Piece& piece) {
  using A = typename AccumulatorOf<S>::Type;
  constexpr int n = kLanes<A>;
  const bool maximum = info(args.kind).takes_maximum;
  auto* tile = reinterpret_cast<A*>(args.space.tile);
  if (piece.access == Access::slices) return mean_by_slices<S, A>(args, piece);
  for_each_volume<S, A>(args, piece, [&](Slices<S, A> slices, int64_t) {
    const Box<A>& box = slices.box;
    for_each_bins(args, 0, args.pooled.depth, [&](const Bins& bins) {
      const int64_t pixels = int64_t{bins.depth} * bins.rows * args.pooled.width;
      if (!box.finite) {
        for (int64_t i = 0; i < pixels; ++i) Lanes<A>::fill(A(__builtin_nan(""))).store(tile + i * n);
      } else if (maximum) {
        max_bins(args, slices, bins, tile);
      } else {
        mean_bins(args, slices, bins, tile);
      }
      for_each_line(args, bins, [&](int64_t first, int64_t rows, int64_t at) {
        emit<S>(args, box.row, slices.channel, slices.lanes, first, rows, tile + at * n);
      });
    });
  });
}

// A piece owns its channels of its slices of the volume, and adds boxes in one fixed order.
template <class S>
static void volume_backward_piece(const KernelArgs& args, const Piece& piece) {
  using A = typename AccumulatorOf<S>::Type;
  constexpr int n = kLanes<A>;
  const auto* boxes = static_cast<const Box<A>*>(piece.boxes);
  const bool maximum = info(args.kind).takes_maximum;
  auto *base = reinterpret_cast<A*>(args.space.block), *tile = reinterpret_cast<A*>(args.space.tile);
  const Map& grad = piece.grad;
  const int64_t plane = grad.height * grad.width * n;
  for (int64_t c = piece.channel; c < piece.channel_end; c += n) {
    const int lanes = lanes_at(piece, c, n);
    for (int64_t z = piece.row; z < piece.row_end; ++z) {
      A* to = base + (z - piece.row) * plane;
      if (piece.add)
        pack_rows<S>(slice_of<S>(grad, z), c, lanes, 0, grad.height, to);
      else
        __builtin_memset(to, 0, static_cast<size_t>(plane) * sizeof(A));
    }
    for (int64_t i = 0; i < piece.box_count && first_slice(boxes[i]) < piece.row_end; ++i) {
      const Box<A>& box = boxes[i];
      if (!touches(box) || last_slice(box) <= piece.row) continue;
      // Positions within the band, and the bins that touch them.
      const Axis<A>& z = *box.z;
      int32_t begin = 0, end = z.touched, first = args.pooled.depth, last = 0;
      while (z.cell[begin] < piece.row) ++begin;
      while (z.cell[end - 1] >= piece.row_end) --end;
      if (maximum) first = 0, last = args.pooled.depth;  // whose tables have no transpose
      for (int32_t k = maximum ? 0 : z.cells.begin[begin]; k < (maximum ? 0 : z.cells.begin[end]); ++k) {
        first = z.cells.index[k] < first ? z.cells.index[k] : first;
        last = z.cells.index[k] >= last ? z.cells.index[k] + 1 : last;
      }
      Slices<S, A> slices{piece, box, c, lanes, reinterpret_cast<A*>(args.space.second), nullptr};
      for_each_bins(args, first, last, [&](const Bins& bins) {
        fetch_bins(args, slices, bins, tile);
        if (maximum) return max_bins_back(args, slices, bins, tile, piece, base);
        for (int32_t position = begin; position < end; ++position)
          mean_bins_back(args, box, bins, tile, position,
                         {base + (z.cell[position] - piece.row) * plane, 0, grad.height, grad.width});
      });
    }
    for (int64_t z = piece.row; z < piece.row_end; ++z)
      unpack_rows<S>(slice_of<S>(grad, z), c, lanes, 0, grad.height, base + (z - piece.row) * plane);
  }
}

template <class S>
static void volume_box_grad_piece(const KernelArgs& args, const Piece& piece) {
  using A = typename AccumulatorOf<S>::Type;
  auto* tile = reinterpret_cast<A*>(args.space.tile);
  for_each_volume<S, A>(args, piece, [&](Slices<S, A> slices, int64_t i) {
    if (!touches(slices.box)) return;
    auto box_grad = [&](bool careful) {
      BoxGrad result;
      for_each_bins(args, 0, args.pooled.depth, [&](const Bins& bins) {
        fetch_bins(args, slices, bins, tile);
        args.kind == Kind::max ? max_bins_box_grad(args, slices, bins, tile, careful, result)
                               : mean_bins_box_grad(args, slices, bins, tile, result);
      });
      return result;
    };
    BoxGrad part = box_grad(false);
    if (!part.finite()) {
      if (args.kind != Kind::max) slices.finite = reinterpret_cast<A*>(args.space.second);
      part = box_grad(true);
    }
    part.add_to(args, piece, i);
  });
}

const Kernel volume_forward_kernels[] = ROI_EACH_TYPE(volume_forward_piece);
const Kernel volume_backward_kernels[] = ROI_EACH_TYPE(volume_backward_piece);
const Kernel volume_box_grad_kernels[] = ROI_EACH_TYPE(volume_box_grad_piece);

}  // namespace roialign::ROI_SET
