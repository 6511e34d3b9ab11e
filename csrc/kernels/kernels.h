// What the driver asks of the kernels. Plain data only: this header is compiled with every instruction set, and an
// inline function shared between them could be linked in the version the machine lacks.
#pragma once

#include <cstdint>

#include "core.h"
#include "tables.h"

namespace roialign {

inline constexpr int64_t kBlockBytes = 64;  // one pixel of one channel block: 16 floats or 8 doubles
inline constexpr int64_t kLineBytes = 64;   // of the cache; scratch memory begins at a line
template <class A>
inline constexpr int kLanes = static_cast<int>(kBlockBytes / sizeof(A));  // channels of a block

// One image of one level; strides in elements.
struct Map {
  char* data;
  int64_t channel_stride, slice_stride, row_stride, pixel_stride;
  int64_t depth, height, width;
};

// [boxes, channels, depth, height, width] of one pooled tensor, the output or its gradient.
struct Pooled {
  char* data;
  int64_t channels, size;  // size: bins of a box
  int32_t depth, height, width;
  bool channels_last;
  bool stream;  // write around the cache: the tensor is far larger than it
};

// How a kernel reads the map.
enum class Access : int {
  whole,    // pack all rows (slices of a volume) of a channel block, once, ahead of the boxes
  slices,   // of a volume: pack one slice at a time, for all boxes that touch it
  windows,  // pack only the cells one box touches
  direct,   // channels are adjacent already: read in place
};

// One unit of work: some boxes of one image, some of its channels.
struct Piece {
  Map input, grad;
  Access access;
  int64_t packed_row;  // whole volumes: cells from one packed row to the next
  const void* boxes;   // const Box<A>*, ordered by first touched row
  int64_t box_count;
  int64_t begun;  // by slices: so many boxes at most are begun and not finished, each with a tile of all its bins
  int64_t channel, channel_end;  // of the pooled tensor; sensitive kinds' boxes: blocks counted through all bins
  int64_t bin, bin_end;          // sensitive kinds: these bins, counted row by row
  const void* bins;              // and their tables, const Bins<A>*: one for every kBinBoxes boxes
  int64_t row, row_end;          // backward to the input: only these rows of the map, or slices of the volume
  bool add;                      // backward to the input: to what is in `grad` already
  double* box_grad;              // backward to the boxes: [box_count, columns - 1] as in the rois, added to
};

// The first greatest sample of one bin, lane by lane; NaN wins. -1: the bin is empty.
struct Winners {
  int32_t y[kLanes<float>], x[kLanes<float>];
};

// The same in a volume.
struct Place {
  int32_t z[kLanes<float>], y[kLanes<float>], x[kLanes<float>];
};

// What one worker needs beside the maps: where each part lies (T = char*), or how many bytes it has (T = int64_t).
template <class T>
struct Parts {
  T block;        // packed input or gradient
  T second;       // the other one, when both are needed
  T strips;       // contracted rows of the columns that a box touches: `tile_rows` or `kDirectBlocks` of them
  T more_strips;  // as many again as `tile_rows`, for the gradient to the boxes
  T best;         // of one row of bins, where a maximum is taken again: the greatest values so far
  T winners;      // and where they lie, one Winners for each bin
  T tile;    // `tile_rows` of one box and one channel block, of a volume in `tile_depth` slices, pixel by pixel; or
             // one pixel of `kDirectBlocks`; by slices as many as boxes are begun
  T stage;   // a tile channel by channel, from any place within a cache line on
  T slice;   // a volume: what becomes of one slice, three tiles of `tile_rows`
  T plane;   // a volume: what its slices come to at one depth, for the cells that a box touches in a slice
  T places;  // a volume: where the maxima of one row of depth bins lie, one Place for each bin
};
using Workspace = Parts<char*>;

// Pooled rows handled together have about so many bins: their tile stays in the first-level cache.
inline constexpr int32_t kTilePixels = 512;
// The same of a volume, in the second-level cache: every further tile contracts slices again.
inline constexpr int32_t kTileVoxels = 4096;
// Adjacent channel blocks contracted together at most: the pixels of a wide map share few cache sets, so each is read a
// piece at a time.
inline constexpr int64_t kDirectBlocks = 16;

// Where bins have channels of their own: channels whose bins go together, and boxes that have tables together.
inline constexpr int kBinGroup = 4;
inline constexpr int64_t kBinBoxes = 512;

struct KernelArgs {
  Kind kind;
  int rank;
  Pooled pooled;
  int32_t tile_rows;       // pooled rows handled together, which the workspace is made for
  int32_t tile_depth = 1;  // in so many pooled slices
  Workspace space;
};

using Kernel = void (*)(const KernelArgs&, const Piece&);

struct Directions {
  const Kernel *forward, *backward_input, *backward_boxes;  // each by DType
};

struct KernelSet {
  const char* name;
  // sensitive: where each bin has channels of its own; gather: cells of its own
  Directions common, sensitive, volume, gather;
  void (*finish)();  // makes streamed stores visible; each worker calls it last
};

extern const KernelSet kernels_baseline, kernels_avx2, kernels_avx512;  // those of them that are built

// The set chosen at import.
const KernelSet& kernels();
// Picks the best set this machine has, or the named one. False if there is no such set or the machine lacks it.
bool choose_kernels(const char* name);

}  // namespace roialign
