// Position-sensitive pooling: bin (p, q) of channel c reads channel (c * PH + p) * PW + q, with one row of each matrix.
//
// A bin is few cells of a plane, which stays in the first-level cache for all boxes: neighbouring cells of its rows are
// the lanes, and planes without gaps are read and written where they are. The same bin of some channels goes together,
// as its weights are theirs.
#include "kernels/bins-inl.h"
#include "kernels/contract-inl.h"

namespace roialign::ROI_SET {

// Of a box: pooled.size is unknown where there are no boxes.
static ROI_INLINE int64_t bins_of(const Pooled& pooled) { return int64_t{pooled.height} * pooled.width; }

// Copies of the planes of neighbouring bins of some channels, where they have gaps, or another type.
template <class A>
static Planes<A> copies(const KernelArgs& args, const Map& map, int bins, int64_t row, int64_t row_end) {
  const int64_t width = map.width > kBinColumns ? map.width : kBinColumns, plane = (row_end - row) * width;
  return {reinterpret_cast<A*>(args.space.block), bins * plane, plane, width, row, row_end};
}

// Calls visit(x) for places in [0, count) from which n neighbours cover all of it; the last two may overlap. False if
// there are not so many.
template <class Visit>
static ROI_INLINE bool cover(int64_t count, int n, Visit&& visit) {
  for (int64_t x = 0; count >= n && x < count; x += n) visit(x + n <= count ? x : count - n);
  return count >= n;
}

// Fills those of one channel, the map's from `first` on, or writes them back.
template <class S, class A>
static void copy_in(const KernelArgs& args, const Map& map, int64_t first, int bins, const Planes<A>& planes, A* to) {
  constexpr int n = kLanes<A>;
  auto* pixels = reinterpret_cast<A*>(args.space.second);
  if (map.width < planes.width)  // what is beyond a row must be finite
    __builtin_memset(to, 0, static_cast<size_t>(bins * planes.bin) * sizeof(A));
  // Rows without gaps are one long row.
  const bool dense = map.pixel_stride == 1 && map.row_stride == planes.width;
  const int64_t rows = dense ? 1 : planes.row_end - planes.row, count = dense ? planes.bin : map.width;
  for (int64_t y = planes.row; y < planes.row + rows; ++y, to += planes.width) {
    if (map.pixel_stride != 1) {
      pack_cells<S>(map, first, bins, y, 0, count, pixels);
      unpack_planes(pixels, bins, count, to, planes.bin);
      continue;
    }
    const S* from = reinterpret_cast<const S*>(map.data) + first * map.channel_stride + y * map.row_stride;
    for (int b = 0; b < bins; ++b, from += map.channel_stride) {
      A* line = to + b * planes.bin;
      if (!cover(count, n, [&](int64_t x) { Storage<S>::load(from + x).store(line + x); }))
        for (int64_t x = 0; x < count; ++x) line[x] = widen(from[x]);
    }
  }
}

template <class S, class A>
static void copy_out(const KernelArgs& args, const Map& map, int64_t first, int bins, const Planes<A>& planes,
                     const A* from) {
  constexpr int n = kLanes<A>;
  auto* pixels = reinterpret_cast<A*>(args.space.second);
  const bool dense = map.pixel_stride == 1 && map.row_stride == planes.width;
  const int64_t rows = dense ? 1 : planes.row_end - planes.row, count = dense ? planes.bin : map.width;
  for (int64_t y = planes.row; y < planes.row + rows; ++y, from += planes.width) {
    if (map.pixel_stride != 1) {
      pack_planes(from, planes.bin, bins, count, pixels);
      unpack_rows<S>(map, first, bins, y, y + 1, pixels);
      continue;
    }
    S* to = reinterpret_cast<S*>(map.data) + first * map.channel_stride + y * map.row_stride;
    for (int b = 0; b < bins; ++b, to += map.channel_stride) {
      const A* line = from + b * planes.bin;
      if (!cover(count, n, [&](int64_t x) { Storage<S>::store(to + x, Lanes<A>::load(line + x)); }))
        for (int64_t x = 0; x < count; ++x) narrow(line[x], to[x]);
    }
  }
}

// Where a box has the values of a channel's bins from `bin` on: one for each, `step` apart.
template <class S>
static ROI_INLINE S* pooled_bins(const Pooled& pooled, int64_t row, int64_t channel, int64_t bin, int64_t& step) {
  step = pooled.channels_last ? pooled.channels : 1;
  return reinterpret_cast<S*>(pooled.data) + row * pooled.channels * bins_of(pooled) + bin * step +
         channel * (pooled.channels_last ? 1 : bins_of(pooled));
}

constexpr int64_t kBoxesAhead = 8;  // whose pooled values are fetched: they lie far apart

// From lines of one bin each, kBinBoxes apart, into the pooled tensor.
template <class S, class A>
static void write_bins(const KernelArgs& args, const Box<A>* boxes, int64_t count, int64_t channel, int64_t bin,
                       int bins, const A* lines) {
  constexpr int n = kLanes<A>;
  auto* tile = reinterpret_cast<A*>(args.space.tile);
  pack_planes(lines, kBinBoxes, bins, count, tile);
  for (int64_t k = 0, step; k < count; ++k) {
    if (k + kBoxesAhead < count)
      __builtin_prefetch(pooled_bins<S>(args.pooled, boxes[k + kBoxesAhead].row, channel, bin, step), 1, 2);
    S* to = pooled_bins<S>(args.pooled, boxes[k].row, channel, bin, step);
    if (bins == n && step == 1) {
      Storage<S>::store(to, Lanes<A>::load(tile + k * n));
      continue;
    }
    if (step == 1) {
      Storage<S>::store_some(to, Lanes<A>::load(tile + k * n), bins);
      continue;
    }
    for (int b = 0; b < bins; ++b) narrow(tile[k * n + b], to[b * step]);
  }
}

// The same back.
template <class S, class A>
static void read_bins(const KernelArgs& args, const Box<A>* boxes, int64_t count, int64_t channel, int64_t bin,
                      int bins, A* lines) {
  constexpr int n = kLanes<A>;
  auto* tile = reinterpret_cast<A*>(args.space.tile);
  for (int64_t k = 0, step; k < count; ++k) {
    if (k + kBoxesAhead < count)
      __builtin_prefetch(pooled_bins<const S>(args.pooled, boxes[k + kBoxesAhead].row, channel, bin, step), 0, 2);
    const S* from = pooled_bins<const S>(args.pooled, boxes[k].row, channel, bin, step);
    if (bins == n && step == 1) {
      Storage<S>::load(from).store(tile + k * n);
      continue;
    }
    if (step == 1) {
      Storage<S>::load_some(from, bins).store(tile + k * n);
      continue;
    }
    for (int b = 0; b < n; ++b) tile[k * n + b] = b < bins ? widen(from[b * step]) : A(0);
  }
  unpack_planes(tile, bins, count, lines, kBinBoxes);
}

// Calls visit(channel, channels, first bin, bins) for parts of a piece whose planes are at hand together: of kBinGroup
// channels or of one, of as many bins as there are lanes.
template <class A, class Visit>
static ROI_INLINE void for_each_run(const Piece& piece, Visit&& visit) {
  const int most = piece.channel_end - piece.channel < kBinGroup ? 1 : kBinGroup;
  const int64_t bins = piece.bin_end - piece.bin, runs = (bins + kLanes<A> - 1) / kLanes<A>;
  for (int64_t run = 0; run < runs; ++run) {
    const int64_t first = bins * run / runs, end = bins * (run + 1) / runs;
    for (int64_t c = piece.channel; c < piece.channel_end;) {
      const int channels = piece.channel_end - c < most ? 1 : most;
      visit(c, channels, piece.bin + first, static_cast<int>(end - first));
      c += channels;
    }
  }
}

// The planes of a run where they are.
template <class A>
static Planes<A> planes_of(const KernelArgs& args, const Map& map, int64_t channel, int64_t bin) {
  const int64_t size = bins_of(args.pooled);
  return {reinterpret_cast<A*>(map.data) + (channel * size + bin) * map.channel_stride,
          size * map.channel_stride,
          map.channel_stride,
          map.width,
          0,
          map.height};
}

// Calls visit(first box, boxes) for as many as have tables together.
template <class Visit>
static ROI_INLINE void for_each_batch(const Piece& piece, Visit&& visit) {
  for (int64_t k = 0; k < piece.box_count; k += kBinBoxes)
    visit(k, piece.box_count - k < kBinBoxes ? piece.box_count - k : kBinBoxes);
}

// Few boxes on a map that has gaps: cell by cell, a bin's channels as lanes; the same sums in the same order.
template <class S, class A>
static void sum_cells(const KernelArgs& args, const Piece& piece) {
  constexpr int n = kLanes<A>;
  const Map& map = piece.input;
  const int64_t size = bins_of(args.pooled), next = size * map.channel_stride;
  auto sum_bin = [&](const Box<A>& box, int64_t bin, int64_t channel, int lanes) {
    const Matrix<A>&ys = box.y.bins, &xs = box.x.bins;
    const int64_t p = bin / args.pooled.width, q = bin % args.pooled.width;
    const S* base = reinterpret_cast<const S*>(map.data) + (channel * size + bin) * map.channel_stride;
    Lanes<A> columns[kBinColumns];
    for (Lanes<A>& column : columns) column = Lanes<A>::fill(0);
    const int64_t width = map.width > kBinColumns ? map.width : kBinColumns;
    int64_t left = 0;
    for (int32_t j = xs.begin[q]; j < xs.begin[q + 1]; ++j) {
      const int64_t x = box.x.cell[xs.index[j]];
      if (j == xs.begin[q] || x >= left + kBinColumns) left = first_column(x, width);
      const S* at = base + x * map.pixel_stride;
      Lanes<A> column = Lanes<A>::fill(0);
      for (int32_t i = ys.begin[p]; i < ys.begin[p + 1]; ++i) {
        const S* from = at + box.y.cell[ys.index[i]] * map.row_stride;
        A wide[n] = {};
        for (int c = 0; c < lanes; ++c) wide[c] = widen(from[c * next]);
        column.add_times(ys.weight[i], Lanes<A>::load(wide));
      }
      columns[x - left].add_times(xs.weight[j], column);
    }
    return sum_columns(columns);
  };
  const auto* boxes = static_cast<const Box<A>*>(piece.boxes);
  for (int64_t k = 0; k < piece.box_count; ++k)
    for (int64_t bin = piece.bin; bin < piece.bin_end; ++bin)
      for (int64_t channel = piece.channel; channel < piece.channel_end; channel += n) {
        const int lanes = lanes_at(piece, channel, n);
        A sums[n];
        (boxes[k].finite ? sum_bin(boxes[k], bin, channel, lanes) : Lanes<A>::fill(A(__builtin_nan("")))).store(sums);
        for (int c = 0; c < lanes; ++c) {
          int64_t step;
          narrow(sums[c], *pooled_bins<S>(args.pooled, boxes[k].row, channel + c, bin, step));
        }
      }
}

template <class S>
static void sensitive_forward_piece(const KernelArgs& args, const Piece& piece) {
  using A = typename AccumulatorOf<S>::Type;
  if (piece.access == Access::windows) return sum_cells<S, A>(args, piece);
  const auto* boxes = static_cast<const Box<A>*>(piece.boxes);
  const auto* tables = static_cast<const Bins<A>*>(piece.bins);
  auto* lines = reinterpret_cast<A*>(args.space.strips);
  const Map& map = piece.input;
  for_each_run<A>(piece, [&](int64_t channel, int channels, int64_t bin, int bins) {
    const bool copied = piece.access == Access::whole;
    const Planes<A> first = copied ? copies<A>(args, map, bins, 0, map.height) : planes_of<A>(args, map, channel, bin);
    for (int c = 0; c < channels && copied; ++c)
      copy_in<S>(args, map, (channel + c) * bins_of(args.pooled) + bin, bins, first, first.data + c * first.channel);
    for_each_batch(piece, [&](int64_t k, int64_t count) {
      Planes<A> planes = first;
      for (int b = 0; b < bins; ++b, planes.data += planes.bin) {
        const auto p = static_cast<int32_t>((bin + b) / args.pooled.width);
        const auto q = static_cast<int32_t>((bin + b) % args.pooled.width);
        const A* next = !copied && !k && b + 1 < bins ? planes.data + planes.bin : nullptr;
        auto* sum = channels > 1 ? sum_bins<A, kBinGroup> : sum_bins<A, 1>;
        sum(planes, tables[k / kBinBoxes], boxes + k, p, q, lines + b * kBinBoxes, int64_t{bins} * kBinBoxes, next);
      }
      for (int c = 0; c < channels; ++c)
        write_bins<S>(args, boxes + k, count, channel + c, bin, bins, lines + int64_t{c} * bins * kBinBoxes);
    });
  });
}

// The transpose. A piece owns its channels' planes of its bins, or a band of their rows, and adds boxes in one fixed
// order.
template <class S>
static void sensitive_backward_piece(const KernelArgs& args, const Piece& piece) {
  using A = typename AccumulatorOf<S>::Type;
  const auto* boxes = static_cast<const Box<A>*>(piece.boxes);
  const auto* tables = static_cast<const Bins<A>*>(piece.bins);
  auto* lines = reinterpret_cast<A*>(args.space.strips);
  const Map& map = piece.grad;
  for_each_run<A>(piece, [&](int64_t channel, int channels, int64_t bin, int bins) {
    const bool copied = piece.access == Access::whole;
    const Planes<A> first =
        copied ? copies<A>(args, map, bins, piece.row, piece.row_end) : planes_of<A>(args, map, channel, bin);
    const int64_t cells = (first.row_end - first.row) * first.width;
    auto clear = [&](A* bin_planes) {
      for (int c = 0; c < channels && !piece.add; ++c)
        __builtin_memset(bin_planes + c * first.channel, 0, static_cast<size_t>(cells) * sizeof(A));
    };
    for (int c = 0; c < channels && copied && piece.add; ++c)
      copy_in<S>(args, map, (channel + c) * bins_of(args.pooled) + bin, bins, first, first.data + c * first.channel);
    for (int b = 0; b < bins && !piece.box_count; ++b) clear(first.data + b * first.bin);
    for_each_batch(piece, [&](int64_t k, int64_t count) {
      for (int c = 0; c < channels; ++c)
        read_bins<S>(args, boxes + k, count, channel + c, bin, bins, lines + int64_t{c} * bins * kBinBoxes);
      Planes<A> planes = first;
      for (int b = 0; b < bins; ++b, planes.data += planes.bin) {
        if (!k) clear(planes.data);
        const auto p = static_cast<int32_t>((bin + b) / args.pooled.width);
        const auto q = static_cast<int32_t>((bin + b) % args.pooled.width);
        auto* add = channels > 1 ? add_bins<A, kBinGroup> : add_bins<A, 1>;
        add(planes, tables[k / kBinBoxes], boxes + k, p, q, lines + b * kBinBoxes, int64_t{bins} * kBinBoxes);
      }
    });
    for (int c = 0; c < channels && copied; ++c)
      copy_out<S>(args, map, (channel + c) * bins_of(args.pooled) + bin, bins, first, first.data + c * first.channel);
  });
}

const Kernel sensitive_forward_kernels[] = ROI_EACH_TYPE(sensitive_forward_piece);
const Kernel sensitive_backward_kernels[] = ROI_EACH_TYPE(sensitive_backward_piece);

}  // namespace roialign::ROI_SET
