// Forward: out = Ay map Ax^T, one channel block at a time.
#include "kernels/rows-inl.h"

namespace roialign::ROI_SET {

template <class S, class A>
static void forward_box(const KernelArgs& args, const View<A>& view, const Box<A>& box, int64_t channel, int lanes) {
  auto* tile = reinterpret_cast<A*>(args.space.tile);
  for_each_tile(args, [&](int32_t first, int32_t rows) {
    if (!box.finite) {
      for (int64_t i = 0; i < int64_t{rows} * args.pooled.width; ++i)
        Lanes<A>::fill(A(__builtin_nan(""))).store(tile + i * kLanes<A>);
    } else if (args.kind == Kind::max) {
      max_rows(args, view, box, first, rows, tile);
    } else if (args.kind == Kind::cells) {
      cell_rows(args, view, box, first, rows, tile);
    } else {
      mean_rows(args, view, box, first, rows, tile);
    }
    emit<S>(args, box.row, channel, lanes, first, rows, tile);
  });
}

// Blocks of adjacent channels whose sums are in registers at the same time.
constexpr int kAbreast = kVectorBytes > 16 ? 4 : 2;

// to[b] = sum over taps of weight * from[b], for `blocks` adjacent channel blocks, a multiple of kAbreast.
template <class S, class A, class At>
static ROI_INLINE void sum_abreast(At&& from_of_tap, const A* weight, int32_t taps, int blocks, A* to) {
  constexpr int n = kLanes<A>;
  for (int b = 0; b < blocks; b += kAbreast) {
    Lanes<A> sum[kAbreast];
    for (int k = 0; k < kAbreast; ++k) sum[k] = Lanes<A>::fill(0);
    for (int32_t t = 0; t < taps; ++t) {
      const S* from = from_of_tap(t) + b * n;
      for (int k = 0; k < kAbreast; ++k) sum[k].add_times(weight[t], Storage<S>::load(from + k * n));
    }
    for (int k = 0; k < kAbreast; ++k) sum[k].store(to + (b + k) * n);
  }
}

// One box of a map and an output that both keep the channels of a pixel adjacent: no packing, no tile, no transpose.
template <class S, class A>
static void forward_adjacent(const KernelArgs& args, const Map& map, const Box<A>& box, int64_t channel, int blocks) {
  constexpr int n = kLanes<A>;
  const Pooled& pooled = args.pooled;
  auto *strip = reinterpret_cast<A*>(args.space.strips), *line = reinterpret_cast<A*>(args.space.tile);
  const S* base = reinterpret_cast<const S*>(map.data) + channel;
  const int64_t wide = int64_t{blocks} * n;
  S* to = reinterpret_cast<S*>(pooled.data) + box.row * pooled.channels * pooled.size + channel;
  const bool lines = streams_blocks<S, A>(pooled, to);
  for (int32_t p = 0; p < pooled.height; ++p) {
    const int32_t first = box.finite ? box.y.bins.begin[p] : 0, taps = box.finite ? box.y.bins.begin[p + 1] - first : 0;
    const int32_t* index = box.y.bins.index + first;
    for (int32_t r = 0; r < box.x.runs; ++r) {
      const Run& run = box.x.run[r];
      for (int32_t i = 0; i < run.count; ++i) {
        const S* column = base + (run.cell + i) * map.pixel_stride;
        auto at = [&](int32_t t) { return column + box.y.cell[index[t]] * map.row_stride; };
        sum_abreast<S>(at, box.y.bins.weight + first, taps, blocks, strip + (run.at + i) * wide);
      }
    }
    for (int32_t q = 0; q < pooled.width; ++q, to += pooled.channels) {
      if (box.finite) {
        const int32_t from = box.x.bins.begin[q], count = box.x.bins.begin[q + 1] - from;
        auto at = [&](int32_t t) { return strip + box.x.bins.index[from + t] * wide; };
        sum_abreast<A>(at, box.x.bins.weight + from, count, blocks, line);
      } else {
        for (int b = 0; b < blocks; ++b) Lanes<A>::fill(A(__builtin_nan(""))).store(line + b * n);
      }
      if (lines) {
        stream(reinterpret_cast<char*>(to), reinterpret_cast<const char*>(line),
               wide * static_cast<int64_t>(sizeof(A)));
        continue;
      }
      for (int b = 0; b < blocks; ++b) Storage<S>::store(to + b * n, Lanes<A>::load(line + b * n));
    }
  }
}

template <class S>
static void forward_piece(const KernelArgs& args, const Piece& all) {
  Piece piece = all;
  using A = typename AccumulatorOf<S>::Type;
  const auto* boxes = static_cast<const Box<A>*>(piece.boxes);
  const bool sums = !info(args.kind).takes_maximum;
  if (sums && args.pooled.channels_last && piece.access == Access::direct) {
    // As many channels as fill groups of blocks; what is left takes the common way.
    const int64_t blocks = (piece.channel_end - piece.channel) / (kLanes<A> * kAbreast) * kAbreast;
    for (int64_t i = 0; i < piece.box_count; ++i)
      for (int64_t b = 0; b < blocks; b += kDirectBlocks)
        forward_adjacent<S>(args, piece.input, boxes[i], piece.channel + b * kLanes<A>,
                            static_cast<int>(blocks - b < kDirectBlocks ? blocks - b : kDirectBlocks));
    piece.channel += blocks * kLanes<A>;
    if (piece.channel == piece.channel_end) return;
  }
  for_each_block<S, A>(args, piece, [&](const View<A>& view, int64_t i, int64_t channel, int lanes) {
    forward_box<S>(args, view, boxes[i], channel, lanes);
  });
}

const Kernel forward_kernels[] = ROI_EACH_TYPE(forward_piece);

}  // namespace roialign::ROI_SET
