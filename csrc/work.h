// What every direction prepares: how much scratch memory a worker needs, and that worker.
#pragma once

#include <algorithm>
#include <cstdint>
#include <new>
#include <utility>
#include <vector>

#include "kernels/kernels.h"
#include "machine.h"
#include "parallel.h"
#include "plan.h"

namespace roialign {

// Pooled values below which a second thread costs more than it brings.
inline constexpr int64_t kSerial = 32768;
// Pooled bytes from which finished tiles bypass the cache.
inline constexpr int64_t kStream = 8 << 20;

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
// Memory of so many cells of one channel block. Strides of 0 make maps whose cells no memory could hold.
inline int64_t block_bytes(int64_t cells) {
  if (cells > (int64_t{1} << 50)) throw std::bad_alloc();
  return cells * kBlockBytes;
}
inline int64_t item_size(DType type) { return kDTypes[static_cast<int>(type)].bytes; }
inline const Directions& directions(const Call& call) {
  const KindInfo& kind = info(call.kind);
  if (kind.gathers()) return kernels().gather;
  return kind.sensitive ? kernels().sensitive : call.rank == 3 ? kernels().volume : kernels().common;
}

using Sizes = Parts<int64_t>;
inline constexpr std::pair<int64_t Sizes::*, char* Workspace::*> kScratch[] = {
    {&Sizes::block, &Workspace::block},   {&Sizes::second, &Workspace::second},
    {&Sizes::strips, &Workspace::strips}, {&Sizes::more_strips, &Workspace::more_strips},
    {&Sizes::best, &Workspace::best},     {&Sizes::winners, &Workspace::winners},
    {&Sizes::tile, &Workspace::tile},     {&Sizes::stage, &Workspace::stage},
    {&Sizes::slice, &Workspace::slice},   {&Sizes::plane, &Workspace::plane},
    {&Sizes::places, &Workspace::places}};

// Scratch memory of one worker.
class Scratch {
 public:
  explicit Scratch(const Sizes& sizes) {
    int64_t total = kLineBytes;
    for (const auto& part : kScratch) total += rounded(sizes.*part.first);
    memory_ = allocate_lines(total, kLineBytes);
    if (!memory_) throw std::bad_alloc();
    expect_large(memory_, total);
    char* at = memory_;
    for (const auto& part : kScratch) {
      space.*part.second = at;
      at += rounded(sizes.*part.first);
    }
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { free_lines(memory_, kLineBytes); }

  Workspace space;

 private:
  static int64_t rounded(int64_t bytes) { return ceil_div(bytes, kLineBytes) * kLineBytes; }
  char* memory_;
};

inline Map image_map(const Level& level, int64_t image, DType type) {
  return {level.data + image * level.stride[0] * item_size(type),
          level.stride[1],
          level.stride[2],
          level.stride[3],
          level.stride[4],
          level.depth,
          level.height,
          level.width};
}

// What every direction prepares.
template <class A>
struct Work {
  static constexpr int64_t lanes = kLanes<A>;
  const Call& call;
  int64_t group, channels, blocks, channel_end, pooled_bytes, threads;
  KernelArgs args;

  explicit Work(const Call& call_) : call(call_) {
    group = call.group();
    channels = call.levels[0].channels / group;
    blocks = ceil_div(channels, lanes) * group;
    channel_end = group > 1 ? blocks * lanes : channels;
    const int64_t values = call.boxes * channels * call.pooled_d * call.pooled_h * call.pooled_w;
    pooled_bytes = values * item_size(call.dtype);
    threads = values < kSerial ? 1 : thread_count();
    args.kind = call.kind;
    args.rank = call.rank;
    args.pooled = {.data = call.pooled,
                   .channels = channels,
                   .size = values ? values / (call.boxes * channels) : 0,  // without values it may be no int64
                   .depth = call.pooled_d,
                   .height = call.pooled_h,
                   .width = call.pooled_w,
                   .channels_last = call.pooled_channels_last,
                   .stream = pooled_bytes >= kStream};
    args.tile_rows = std::clamp(kTilePixels / call.pooled_w, 1, call.pooled_h);
    if (call.rank == 3) args.tile_depth = std::clamp(kTileVoxels / (args.tile_rows * call.pooled_w), 1, call.pooled_d);
  }

  // What every direction needs; the blocks are added to it.
  Sizes sizes(const Plan<A>& plan) const {
    const int64_t rows = args.tile_rows, strip = info(call.kind).gathers() ? 0 : plan.most_columns * kBlockBytes;
    Sizes sizes{};
    sizes.strips = std::max(rows, kDirectBlocks) * strip;
    sizes.more_strips = rows * strip;
    sizes.best = call.pooled_w * kBlockBytes;
    sizes.winners = call.pooled_w * static_cast<int64_t>(sizeof(Winners));
    sizes.tile = std::max(rows * call.pooled_w * args.tile_depth, kDirectBlocks) * kBlockBytes;
    sizes.stage = sizes.tile + kLineBytes;
    if (call.rank < 3) return sizes;
    sizes.slice = 3 * rows * call.pooled_w * kBlockBytes;
    if (!info(call.kind).takes_maximum) return sizes;
    sizes.plane = block_bytes(plan.most_cells);
    sizes.places = rows * call.pooled_w * static_cast<int64_t>(sizeof(Place));
    return sizes;
  }
  // Packed windows of a box at the same time: a sample of a volume lies between two slices.
  int64_t windows() const { return call.rank == 3 ? 2 : 1; }
  void run(const std::vector<Piece>& pieces, const Kernel* kernel_of_type, const Sizes& sizes) const {
    const Kernel kernel = kernel_of_type[static_cast<int>(call.dtype)];
    for_each_task(static_cast<int64_t>(pieces.size()), threads, [&](auto& next) {
      const Scratch scratch(sizes);
      KernelArgs mine = args;
      mine.space = scratch.space;
      for (int64_t task; (task = next()) >= 0;) kernel(mine, pieces[static_cast<size_t>(task)]);
      kernels().finish();
    });
  }
};

}  // namespace roialign
