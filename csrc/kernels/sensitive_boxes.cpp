// The gradient to the boxes where each bin has channels of its own.
//
// The channels that one bin reads are a map of their own, only further apart. Its channels are the lanes, so that every
// vector is full where a bin has channels enough, and packing a block of them reads nothing that no box will read.
#include "kernels/gradients-inl.h"

namespace roialign::ROI_SET {

// Some of the channels that one bin reads: the bin's map, and which of its channels.
struct Block {
  Map map;
  int64_t channel;
  int lanes;
  int32_t p, q;
};

// A piece counts blocks as if each had kLanes channels: the first one of every bin, then the second ones. The pooled
// values of neighbouring bins lie side by side, so a line of them stays in the cache until it is full.
template <class S, class A>
static Block block_at(const KernelArgs& args, const Map& map, int64_t at) {
  constexpr int n = kLanes<A>;
  const Pooled& pooled = args.pooled;
  const int64_t bins = int64_t{pooled.height} * pooled.width, bin = at / n % bins, channel = at / n / bins * n;
  Block block{map, channel, static_cast<int>(pooled.channels - channel < n ? pooled.channels - channel : n),
              static_cast<int32_t>(bin / pooled.width), static_cast<int32_t>(bin % pooled.width)};
  block.map.data += bin * map.channel_stride * static_cast<int64_t>(sizeof(S));
  block.map.channel_stride *= bins;
  return block;
}

// The values of a block in the pooled tensor: one for each lane, `step` apart.
template <class S>
struct PooledBin {
  S* data;
  int64_t step;

  PooledBin(const KernelArgs& args, int64_t row, const Block& block) {
    const Pooled& pooled = args.pooled;
    const int64_t size = pooled.size, bin = int64_t{block.p} * pooled.width + block.q;
    step = pooled.channels_last ? 1 : size;
    data = reinterpret_cast<S*>(pooled.data) + row * pooled.channels * size + block.channel * step +
           bin * (pooled.channels_last ? pooled.channels : 1);
  }
};

template <class S, class A>
static ROI_INLINE Lanes<A> load_lanes(const S* from, int64_t step, int lanes) {
  A wide[kLanes<A>] = {};
  for (int c = 0; c < lanes; ++c) wide[c] = widen(from[c * step]);
  return Lanes<A>::load(wide);
}

// Calls visit(box index, block, cell) for every box and block of the piece; cell(y, x) is that of the block's map.
template <class S, class A, class Visit>
static ROI_INLINE void for_each_bin(const KernelArgs& args, const Piece& piece, Visit&& visit) {
  constexpr int n = kLanes<A>;
  const auto* boxes = static_cast<const Box<A>*>(piece.boxes);
  if (piece.access != Access::whole) {  // a bin has few cells, and each is read once
    for (int64_t i = 0; i < piece.box_count; ++i)
      for (int64_t at = piece.channel; at < piece.channel_end; at += n) {
        const Block block = block_at<S, A>(args, piece.input, at);
        const Map& map = block.map;
        const S* base = reinterpret_cast<const S*>(map.data) + block.channel * map.channel_stride;
        visit(i, block, [&](int64_t y, int64_t x) {
          return load_lanes<S, A>(base + y * map.row_stride + x * map.pixel_stride, map.channel_stride, block.lanes);
        });
      }
    return;
  }
  auto* packed = reinterpret_cast<A*>(args.space.block);
  const int64_t first = piece.box_count && boxes[0].y.touched ? boxes[0].y.cell[0] : 0;
  int64_t end = first;
  for (int64_t i = 0; i < piece.box_count; ++i) end = last_row(boxes[i]) > end ? last_row(boxes[i]) : end;
  for (int64_t at = piece.channel; at < piece.channel_end; at += n) {
    const Block block = block_at<S, A>(args, piece.input, at);
    pack_rows<S>(block.map, block.channel, block.lanes, first, end, packed);
    // The bins of a box share lines of the cache: threads at neighbouring blocks begin at boxes far apart, as multiples
    // of the golden ratio are.
    const int64_t start = at / n % 65536 * 40503 % 65536 * piece.box_count / 65536;
    for (int64_t k = 0; k < piece.box_count; ++k) {
      const int64_t i = start + k < piece.box_count ? start + k : start + k - piece.box_count;
      visit(i, block, [&](int64_t y, int64_t x) { return Lanes<A>::load(packed + (y * piece.input.width + x) * n); });
    }
  }
}

// The derivative of one bin's values times their gradient, with respect to the box.
template <class A, class Cell>
static ROI_INLINE BoxGrad bin_box_grad(const Box<A>& box, const Block& block, const Lanes<A>& grad, Cell&& cell) {
  const Matrix<A>&ys = box.y.bins, &xs = box.x.bins;
  Lanes<A> y_lo = Lanes<A>::fill(0), y_hi = y_lo, x_lo = y_lo, x_hi = y_lo;
  for (int32_t j = xs.begin[block.q]; j < xs.begin[block.q + 1]; ++j) {
    const int64_t x = box.x.cell[xs.index[j]];
    Lanes<A> column = Lanes<A>::fill(0), lo = column, hi = column;
    for (int32_t i = ys.begin[block.p]; i < ys.begin[block.p + 1]; ++i) {
      const Lanes<A> value = cell(box.y.cell[ys.index[i]], x);
      column.add_times(ys.weight[i], value);
      lo.add_times(box.y.dlo[i], value);
      hi.add_times(box.y.dhi[i], value);
    }
    y_lo.add_times(xs.weight[j], lo);
    y_hi.add_times(xs.weight[j], hi);
    x_lo.add_times(box.x.dlo[j], column);
    x_hi.add_times(box.x.dhi[j], column);
  }
  return {x_lo.times(grad).sum(), y_lo.times(grad).sum(), x_hi.times(grad).sum(), y_hi.times(grad).sum()};
}

template <class S>
static void sensitive_box_grad_piece(const KernelArgs& args, const Piece& piece) {
  using A = typename AccumulatorOf<S>::Type;
  const auto* boxes = static_cast<const Box<A>*>(piece.boxes);
  for_each_bin<S, A>(args, piece, [&](int64_t k, const Block& block, auto&& cell) {
    const Box<A>& box = boxes[k];
    if (!box.y.touched || !box.x.touched) return;
    const PooledBin<S> from(args, box.row, block);
    const Lanes<A> grad = load_lanes<S, A>(from.data, from.step, block.lanes);
    BoxGrad part = bin_box_grad(box, block, grad, cell);
    if (!part.finite())  // a cell that is not finite has no slope
      part = bin_box_grad(box, block, grad, [&](int64_t y, int64_t x) { return finite_lanes(cell(y, x)); });
    part.add_to(args, piece, k);
  });
}

const Kernel sensitive_box_grad_kernels[] = ROI_EACH_TYPE(sensitive_box_grad_piece);

}  // namespace roialign::ROI_SET
