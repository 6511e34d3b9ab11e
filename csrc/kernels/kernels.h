// What the driver asks of the kernels. Plain data only: this header is compiled with every instruction set, and an
// inline function shared between them could be linked in the version the machine lacks.
#pragma once

#include <cstdint>

#include "core.h"
#include "tables.h"

namespace roialign {

constexpr int64_t kBlockBytes = 64;  // one pixel of one channel block: 16 floats or 8 doubles

// One image of one level; strides in elements.
struct Map {
  char* data;
  int64_t channel_stride, row_stride, pixel_stride;
  int64_t height, width;
};

// [boxes, channels, height, width] of one pooled tensor, the output or its gradient.
struct Pooled {
  char* data;
  int64_t channels;
  int32_t height, width;
  bool channels_last;
  bool stream;  // write around the cache: the tensor is far larger than it
};

// How a kernel reads the map.
enum class Access : int {
  whole,    // pack all rows of a channel block, once, ahead of the boxes
  windows,  // pack only the cells one box touches
  direct,   // channels are adjacent already: read in place
};

// One unit of work: some boxes of one image, some of its channels.
struct Piece {
  Map input, grad;
  Access access;
  const void* boxes;  // const Box<A>*, ordered by first touched row
  int64_t box_count;
  int64_t channel, channel_end;
  int64_t row, row_end;  // backward to the input: only these rows of the map
  bool add;              // backward to the input: to what is in `grad` already
  double* box_grad;      // backward to the boxes: [box_count][4], added to
};

// Scratch memory of one worker, 64-byte aligned.
struct Workspace {
  char* block;   // packed input or gradient
  char* second;  // the other one, when both are needed
  char* strips;  // contracted rows
  char* tile;    // pooled values of one box and one channel block, pixel by pixel
  char* stage;   // the same, channel by channel
};

// Pooled rows handled together: their tile stays in the first-level cache.
inline constexpr int32_t kTilePixels = 512;
// Adjacent channel blocks contracted together at most: the pixels of a wide map share few cache sets, so each is read a
// piece at a time.
inline constexpr int64_t kDirectBlocks = 16;

struct KernelArgs {
  Kind kind;
  Pooled pooled;
  Workspace space;
};

using Kernel = void (*)(const KernelArgs&, const Piece&);

struct KernelSet {
  const char* name;
  // Indexed by DType.
  Kernel forward[4];
  Kernel backward_input[4];
  Kernel backward_boxes[4];
  void (*finish)();  // makes streamed stores visible; each worker calls it last
};

extern const KernelSet kernels_baseline;
#ifdef ROIALIGN_X86
extern const KernelSet kernels_avx2;
extern const KernelSet kernels_avx512;
#endif

// The set chosen at import.
const KernelSet& kernels();
// Picks the best set this machine has, or the named one. False if there is no such set or the machine lacks it.
bool choose_kernels(const char* name);

}  // namespace roialign
