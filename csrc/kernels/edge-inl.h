// Between memory as PyTorch lays it out and blocks of kLanes channels, pixel by pixel. All conversions of type and
// layout happen here and in planes.cpp.
#pragma once

#include "kernels/neon-inl.h"
#include "kernels/storage-inl.h"

namespace roialign::ROI_SET {

// Planes to pixels: `count` consecutive cells of `lanes` channels; missing lanes become zero.
template <class S, class A>
void pack_planes(const S* from, int64_t channel_stride, int lanes, int64_t count, A* to);

// Pixels to planes, the inverse of pack_planes.
template <class S, class A>
void unpack_planes(const A* from, int lanes, int64_t count, S* to, int64_t channel_stride);

template <class S, class A>
static void pack_cells(const Map& map, int64_t channel, int lanes, int64_t y, int64_t x, int64_t count, A* to) {
  constexpr int n = kLanes<A>;
  const S* from =
      reinterpret_cast<const S*>(map.data) + channel * map.channel_stride + y * map.row_stride + x * map.pixel_stride;
  if (map.pixel_stride == 1 && map.channel_stride != 1) return pack_planes(from, map.channel_stride, lanes, count, to);
  for (int64_t i = 0; i < count; ++i, from += map.pixel_stride, to += n) {
    if (map.channel_stride == 1) {
      (lanes == n ? Storage<S>::load(from) : Storage<S>::load_some(from, lanes)).store(to);
    } else {
      for (int c = 0; c < n; ++c) to[c] = c < lanes ? widen(from[c * map.channel_stride]) : A(0);
    }
  }
}

// Rows [y, y_end) of a channel block; as one long row where nothing lies between rows.
template <class S, class A>
static void pack_rows(const Map& map, int64_t channel, int lanes, int64_t y, int64_t y_end, A* block) {
  A* to = block + y * map.width * kLanes<A>;
  if (y >= y_end) return;
  if (map.row_stride == map.width * map.pixel_stride)
    return pack_cells<S>(map, channel, lanes, y, 0, (y_end - y) * map.width, to);
  for (; y < y_end; ++y, to += map.width * kLanes<A>) pack_cells<S>(map, channel, lanes, y, 0, map.width, to);
}

template <class S, class A>
static void unpack_rows(const Map& map, int64_t channel, int lanes, int64_t y, int64_t y_end, const A* from) {
  constexpr int n = kLanes<A>;
  S* to = reinterpret_cast<S*>(map.data) + channel * map.channel_stride + y * map.row_stride;
  const bool planes = map.pixel_stride == 1 && map.channel_stride != 1;
  if (planes && map.row_stride == map.width)
    return unpack_planes(from, lanes, (y_end - y) * map.width, to, map.channel_stride);
  for (; y < y_end; ++y, to += map.row_stride, from += map.width * n) {
    if (planes) {
      unpack_planes(from, lanes, map.width, to, map.channel_stride);
      continue;
    }
    for (int64_t x = 0; x < map.width; ++x) {
      if (map.channel_stride == 1) {
        const Lanes<A> pixel = Lanes<A>::load(from + x * n);
        S* at = to + x * map.pixel_stride;
        lanes == n ? Storage<S>::store(at, pixel) : Storage<S>::store_some(at, pixel, lanes);
        continue;
      }
      for (int c = 0; c < lanes; ++c) narrow(from[x * n + c], to[x * map.pixel_stride + c * map.channel_stride]);
    }
  }
}

// Whether the pixels of a channels_last output, from this one on, can go around the cache block by block.
template <class S, class A>
static ROI_INLINE bool streams_blocks(const Pooled& pooled, const S* to) {
  return pooled.stream && sizeof(S) == sizeof(A) && reinterpret_cast<uintptr_t>(to) % kLineBytes == 0 &&
         pooled.channels % kLanes<A> == 0;
}

// Writes the pooled rows [first, first + rows) of box `row` and one channel block. Those of a volume are counted
// through its pooled slices.
template <class S, class A>
static void emit(const KernelArgs& args, int64_t row, int64_t channel, int lanes, int64_t first, int64_t rows,
                 const A* tile) {
  const Pooled& pooled = args.pooled;
  const int64_t size = pooled.size, pixels = rows * pooled.width;
  first *= pooled.width;
  S* to = reinterpret_cast<S*>(pooled.data) + row * pooled.channels * size;
  if (pooled.channels_last) {
    to += first * pooled.channels + channel;
    const bool lines = lanes == kLanes<A> && streams_blocks<S, A>(pooled, to);
    for (int64_t p = 0; p < pixels; ++p, to += pooled.channels) {
      if (lines) {
        stream(reinterpret_cast<char*>(to), reinterpret_cast<const char*>(tile + p * kLanes<A>), kBlockBytes);
        continue;
      }
      const Lanes<A> lane = Lanes<A>::load(tile + p * kLanes<A>);
      lanes == kLanes<A> ? Storage<S>::store(to, lane) : Storage<S>::store_some(to, lane, lanes);
    }
    return;
  }
  to += channel * size + first;
  // The channels of a whole box are adjacent, so they can go out as one piece.
  const int64_t bytes = lanes * size * static_cast<int64_t>(sizeof(S));
  const auto phase = static_cast<int64_t>(reinterpret_cast<uintptr_t>(to) % kLineBytes);
  if (pooled.stream && pixels == size && bytes % 32 == 0 && phase % 32 == 0) {
    char* stage = args.space.stage + phase;
    unpack_planes(tile, lanes, pixels, reinterpret_cast<S*>(stage), size);
    return stream(reinterpret_cast<char*>(to), stage, bytes);
  }
  unpack_planes(tile, lanes, pixels, to, size);
}

// Reads the same rows; missing lanes become zero.
template <class S, class A>
static void fetch(const KernelArgs& args, int64_t row, int64_t channel, int lanes, int64_t first, int64_t rows,
                  A* tile) {
  const Pooled& pooled = args.pooled;
  const int64_t size = pooled.size, pixels = rows * pooled.width;
  first *= pooled.width;
  const S* from = reinterpret_cast<const S*>(pooled.data) + row * pooled.channels * size;
  if (!pooled.channels_last) return pack_planes(from + channel * size + first, size, lanes, pixels, tile);
  from += first * pooled.channels + channel;
  for (int64_t p = 0; p < pixels; ++p, from += pooled.channels)
    (lanes == kLanes<A> ? Storage<S>::load(from) : Storage<S>::load_some(from, lanes)).store(tile + p * kLanes<A>);
}

// Asks for the whole box ahead of time: boxes lie far apart, out of the hardware prefetcher's sight.
template <class S>
static ROI_INLINE void fetch_ahead(const KernelArgs& args, int64_t row, int64_t channel, int lanes) {
  const Pooled& pooled = args.pooled;
  const int64_t size = pooled.size;
  if (size > kTilePixels || pooled.channels_last) return;
  const char* from = pooled.data + (row * pooled.channels + channel) * size * static_cast<int64_t>(sizeof(S));
  for (int64_t i = 0; i < lanes * size * static_cast<int64_t>(sizeof(S)); i += kLineBytes)
    __builtin_prefetch(from + i, 0, 2);
}

// How the contractions read one channel block of the map.
template <class A>
struct View {
  const A* base;
  int64_t row, pixel;  // strides
  bool compact;        // rows and pixels are touched positions, not cells

  // The cell in touched row i and touched column j of the box.
  ROI_INLINE const A* at(const Box<A>& box, int32_t i, int32_t j) const {
    const int64_t y = compact ? i : box.y.cell[i], x = compact ? j : box.x.cell[j];
    return base + y * row + x * pixel;
  }
};

// Calls visit(first, rows) for the pooled rows that are handled together.
template <class Visit>
static ROI_INLINE void for_each_tile(const KernelArgs& args, Visit&& visit) {
  const int32_t height = args.pooled.height, step = args.tile_rows;
  for (int32_t first = 0; first < height; first += step) visit(first, height - first < step ? height - first : step);
}

// Packs the cells one box touches, side by side.
template <class S, class A>
static View<A> pack_window(const Map& map, const Box<A>& box, int64_t channel, int lanes, A* block) {
  constexpr int n = kLanes<A>;
  const int64_t width = box.x.touched;
  A* to = block;
  if (box.stencil) {  // what no bin touches is left as it is
    for (int32_t i = 0; i < box.y.touched; ++i, to += width * n) {
      const Run& span = box.stencil->spans[i];
      if (span.count)
        pack_cells<S>(map, channel, lanes, box.y.cell[i], span.cell, span.count, to + int64_t{span.at} * n);
    }
    return {block, width * n, n, true};
  }
  for (int32_t i = 0; i < box.y.touched; ++i, to += width * n)
    for (int32_t r = 0; r < box.x.runs; ++r) {
      const Run& run = box.x.run[r];
      pack_cells<S>(map, channel, lanes, box.y.cell[i], run.cell, run.count, to + int64_t{run.at} * n);
    }
  return {block, width * n, n, true};
}

// A box's window without the cells that are not finite: they have no slope.
template <class S, class A>
static View<A> pack_finite(const Map& map, const Box<A>& box, int64_t channel, int lanes, A* block) {
  const View<A> view = pack_window<S>(map, box, channel, lanes, block);
  for (int64_t i = 0; i < int64_t{box.y.touched} * box.x.touched * kLanes<A>; ++i)
    if (block[i] - block[i] != 0) block[i] = 0;
  return view;
}

}  // namespace roialign::ROI_SET
