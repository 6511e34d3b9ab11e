// The slices of a volume as maps, and which of a box's bins are made together.
#pragma once

#include "kernels/contract-inl.h"

namespace roialign::ROI_SET {

template <class S>
static ROI_INLINE Map slice_of(const Map& volume, int64_t z) {
  Map slice = volume;
  slice.data += z * volume.slice_stride * static_cast<int64_t>(sizeof(S));
  return slice;
}

// One channel block of the slices that a box touches, by position.
template <class S, class A>
struct Slices {
  const Piece& piece;
  const Box<A>& box;
  int64_t channel;
  int lanes;
  A* block;   // the packed volume, or two windows
  A* finite;  // a window, wanted where cells that are not finite count as 0
  int32_t packed[2] = {-1, -1};

  View<A> at(int32_t position) {
    constexpr int n = kLanes<A>;
    const int64_t z = box.z->cell[position];
    const Map slice = slice_of<S>(piece.input, z);
    if (finite) return pack_finite<S>(slice, box, channel, lanes, finite);
    if (piece.access == Access::whole) {
      const int64_t row = piece.packed_row * n;
      return {block + z * slice.height * row, row, n, false};
    }
    if constexpr (sizeof(S) == sizeof(A)) {
      if (piece.access == Access::direct && lanes == n)
        return {reinterpret_cast<const A*>(slice.data) + channel, slice.row_stride, slice.pixel_stride, false};
    }
    // The slices of a sample are neighbours, so each has a window of its own, and is still there for the next sample.
    const int64_t width = box.x.touched;
    A* window = block + (position & 1) * box.y.touched * width * n;
    if (packed[position & 1] != position) pack_window<S>(slice, box, channel, lanes, window);
    packed[position & 1] = position;
    return {window, width * n, n, true};
  }
};

template <class A>
static ROI_INLINE int64_t first_slice(const Box<A>& box) {
  return box.z && box.z->touched ? box.z->cell[0] : 0;
}
template <class A>
static ROI_INLINE int64_t last_slice(const Box<A>& box) {
  return box.z && box.z->touched ? box.z->cell[box.z->touched - 1] + 1 : 0;
}
template <class A>
static ROI_INLINE bool touches(const Box<A>& box) {
  return box.z && box.z->touched && box.y.touched && box.x.touched;
}

// Which of the touched slices lies at `z`, or -1.
template <class A>
static ROI_INLINE int32_t position_of(const Axis<A>& axis, int64_t z) {
  int32_t from = 0, to = axis.touched;
  while (from < to) {
    const int32_t middle = (from + to) / 2;
    if (axis.cell[middle] < z)
      from = middle + 1;
    else
      to = middle;
  }
  return from < axis.touched && axis.cell[from] == z ? from : -1;
}

// Calls visit(slices, box index) for every box and channel block of the piece.
template <class S, class A, class Visit>
static ROI_INLINE void for_each_volume(const KernelArgs& args, const Piece& piece, Visit&& visit) {
  constexpr int n = kLanes<A>;
  const Map& volume = piece.input;
  const auto* boxes = static_cast<const Box<A>*>(piece.boxes);
  auto* block = reinterpret_cast<A*>(args.space.block);
  auto slices = [&](int64_t i, int64_t c) {
    return Slices<S, A>{piece, boxes[i], c, lanes_at(piece, c, n), block, nullptr};
  };
  if (piece.access != Access::whole) {
    for (int64_t i = 0; i < piece.box_count; ++i)
      for (int64_t c = piece.channel; c < piece.channel_end; c += n) visit(slices(i, c), i);
    return;
  }
  for (int64_t c = piece.channel; c < piece.channel_end; c += n) {
    int64_t packed = 0;
    for (int64_t i = 0; i < piece.box_count; ++i) {
      // Boxes come ordered by their first slice: none needs an earlier one any more.
      const int64_t first = first_slice(boxes[i]), needed = last_slice(boxes[i]);
      for (packed = packed > first ? packed : first; packed < needed; ++packed)
        for (int64_t y = 0; y < volume.height; ++y)
          pack_cells<S>(slice_of<S>(volume, packed), c, lanes_at(piece, c, n), y, 0, volume.width,
                        block + (packed * volume.height + y) * piece.packed_row * n);
      visit(slices(i, c), i);
    }
  }
}

// Some of a box's bins: so many slices of them, and so many rows of each.
struct Bins {
  int32_t z, depth, row, rows;
};

// Calls visit(bins) for the bins that are handled together, among the pooled slices [first, last).
template <class Visit>
static ROI_INLINE void for_each_bins(const KernelArgs& args, int32_t first, int32_t last, Visit&& visit) {
  for (int32_t z = first; z < last; z += args.tile_depth)
    for_each_tile(args, [&](int32_t row, int32_t rows) {
      visit(Bins{z, last - z < args.tile_depth ? last - z : args.tile_depth, row, rows});
    });
}

// Calls visit(first, rows, at) for the pooled rows of the bins that lie side by side, which begin at pixel `at`.
template <class Visit>
static ROI_INLINE void for_each_line(const KernelArgs& args, const Bins& bins, Visit&& visit) {
  const int64_t height = args.pooled.height, pixels = int64_t{bins.rows} * args.pooled.width;
  if (bins.rows == height) return visit(bins.z * height, bins.depth * height, int64_t{0});
  for (int32_t p = 0; p < bins.depth; ++p) visit((bins.z + p) * height + bins.row, int64_t{bins.rows}, p * pixels);
}

template <class S, class A>
static void fetch_bins(const KernelArgs& args, const Slices<S, A>& slices, const Bins& bins, A* tile) {
  for_each_line(args, bins, [&](int64_t first, int64_t rows, int64_t at) {
    fetch<S>(args, slices.box.row, slices.channel, slices.lanes, first, rows, tile + at * kLanes<A>);
  });
}

}  // namespace roialign::ROI_SET
