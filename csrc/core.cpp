// The three directions: cut the work into pieces that own what they write, and run them.
#include <algorithm>
#include <cstring>
#include <new>
#include <utility>
#include <vector>

#include "kernels/kernels.h"
#include "machine.h"
#include "parallel.h"
#include "plan.h"
#include "stencil.h"

namespace roialign {
namespace {

// Boxes whose tables exist at the same time, where the direction allows it.
constexpr int64_t kChunk = 16384;
// And the taps of stencils, which take more memory than two matrices.
constexpr double kChunkTaps = 1 << 21;
// Pooled values below which a second thread costs more than it brings.
constexpr int64_t kSerial = 32768;
// Pooled bytes from which finished tiles bypass the cache.
constexpr int64_t kStream = 8 << 20;
// What of a map's gradient is made together where bins have their own channels: it stays in the second-level cache.
constexpr int64_t kBand = 256 << 10;
// What of a volume is packed at the same time at most, and what of its gradient is made together.
constexpr int64_t kVolume = 64 << 20, kSlices = 512 << 10;
// And of the boxes that a volume's slices are added to.
constexpr int64_t kBegun = 4 << 20;
// Sums over channels are cut in this many parts, whatever the number of threads.
constexpr int64_t kParts = 16;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
// Memory of so many cells of one channel block. Strides of 0 make maps whose cells no memory could hold.
int64_t block_bytes(int64_t cells) {
  if (cells > (int64_t{1} << 50)) throw std::bad_alloc();
  return cells * kBlockBytes;
}
int64_t item_size(DType type) { return kDTypes[static_cast<int>(type)].bytes; }
const Directions& directions(const Call& call) {
  const KindInfo& kind = info(call.kind);
  if (kind.gathers()) return kernels().gather;
  return kind.sensitive ? kernels().sensitive : call.rank == 3 ? kernels().volume : kernels().common;
}

using Sizes = Parts<int64_t>;
constexpr std::pair<int64_t Sizes::*, char* Workspace::*> kScratch[] = {
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

Map image_map(const Level& level, int64_t image, DType type) {
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

// What reading one bin of the box in place costs on average, in packed cells: its lanes are read one by one, which was
// measured to cost four times as much as packing them where they are planes that lie far apart.
template <class A>
int64_t cost_of_a_bin(const Work<A>& work, const Box<A>& box, const Map& map) {
  if (!box.finite) return 0;
  const int64_t taps = int64_t{box.y.bins.begin[work.call.pooled_h]} * box.x.bins.begin[work.call.pooled_w];
  const int64_t factor = map.channel_stride == 1 ? 1 : 4;
  return factor * ceil_div(taps, work.group) * std::min(work.channels, work.lanes) / work.lanes;
}

// How to read the map for one group of boxes: whatever touches the least memory.
template <class A>
Access access_of(const Work<A>& work, const Plan<A>& plan, const Group& group, const Map& map, bool by_slices) {
  const bool sensitive = info(work.call.kind).sensitive;
  if (map.channel_stride == 1 && work.channels >= work.lanes && !sensitive) return Access::direct;
  int64_t cells = 0;
  const int64_t all = map.depth * map.height * map.width;
  if (work.call.rank == 3 && (by_slices ? all / map.depth : all) > kVolume / kBlockBytes) return Access::windows;
  for (int64_t i = group.begin; i < group.end && cells < all; ++i) {
    const Box<A>& box = plan.boxes[static_cast<size_t>(i)];
    // The short rows of a window cost several times as much as whole slices, which are packed as long ones.
    constexpr int64_t factor = 4;
    cells += sensitive ? cost_of_a_bin(work, box, map) : packed_cells(box) * (box.z ? factor * box.z->touched : 1);
  }
  return cells < all ? Access::windows : by_slices ? Access::slices : Access::whole;
}

// Cuts [0, count) in `parts` nearly equal ranges.
int64_t cut(int64_t count, int64_t parts, int64_t part) { return count * part / parts; }

// The end of the boxes from `begin` on whose tables exist at the same time.
int64_t chunk_end(const Call& call, const Grouping& grouping, int64_t begin) {
  int64_t end = std::min(begin + kChunk, call.boxes);
  if (!info(call.kind).gathers()) return end;
  double taps = 0;
  for (int64_t i = begin; i < end; ++i) {
    taps += expected_taps(call, grouping.rows[static_cast<size_t>(i)]);
    if (taps > kChunkTaps) return std::max(i, begin + 1);
  }
  return end;
}

// Pieces that read the map: by channel block where the block is packed for all boxes, else by boxes, which keeps a
// box's cells in the cache for all its channels. `ranges` are the channel blocks that must stay together.
template <class A>
void add_reading_pieces(const Work<A>& work, const Plan<A>& plan, int64_t ranges, double* box_grad,
                        std::vector<Piece>& pieces, Sizes& sizes) {
  const int64_t wanted = work.threads > 1 ? 8 * work.threads : 1;
  // A mean is a sum over slices, so that any order of them will do which takes a box's own in theirs.
  const bool by_slices = work.call.rank == 3 && !info(work.call.kind).takes_maximum && !box_grad &&
                         work.args.tile_depth == work.call.pooled_d && work.args.tile_rows == work.call.pooled_h;
  for (const Group& group : plan.groups) {
    Piece piece{};
    piece.input = image_map(work.call.levels[group.level], group.image, work.call.dtype);
    piece.access = access_of(work, plan, group, piece.input, by_slices);
    const bool whole = piece.access == Access::whole || piece.access == Access::slices;
    const Map& map = piece.input;
    // An odd number of cells, so that the rows of a box lie in different sets of the cache.
    piece.packed_row = work.call.rank == 3 ? map.width | 1 : map.width;
    const int64_t count = group.end - group.begin, slice = map.height * piece.packed_row;
    int64_t cells = work.windows() * plan.most_cells;
    if (piece.access == Access::whole) cells = map.depth * slice;
    if (piece.access == Access::slices) {
      cells = slice;
      piece.begun = std::clamp<int64_t>(kBegun / block_bytes(work.args.pooled.size), 1, count);
      sizes.tile = std::max(sizes.tile, piece.begun * block_bytes(work.args.pooled.size));
    }
    sizes.block = std::max(sizes.block, block_bytes(cells));
    int64_t channel_cuts = ranges, box_cuts = 1;
    if (whole) {
      // Every cut packs again what its boxes touch.
      box_cuts = ranges % work.threads ? std::clamp<int64_t>(work.threads * 2 / ranges, 1, count) : 1;
    } else {
      box_cuts = std::min(count, wanted);
      if (!box_grad) channel_cuts = std::min(ranges, ceil_div(wanted, box_cuts));
    }
    for (int64_t c = 0; c < channel_cuts; ++c)
      for (int64_t b = 0; b < box_cuts; ++b) {
        const int64_t first = group.begin + cut(count, box_cuts, b);
        piece.box_count = group.begin + cut(count, box_cuts, b + 1) - first;
        piece.boxes = plan.boxes.data() + first;
        piece.channel = cut(work.blocks, channel_cuts, c) * work.lanes;
        piece.channel_end = std::min(cut(work.blocks, channel_cuts, c + 1) * work.lanes, work.channel_end);
        if (box_grad)
          piece.box_grad = box_grad + (c * static_cast<int64_t>(plan.boxes.size()) + first) * (work.call.columns() - 1);
        pieces.push_back(piece);
      }
  }
}

template <class A>
void run_forward(const Call& call) {
  const Work<A> work(call);
  if (!work.blocks) return;
  expect_large(call.pooled, work.pooled_bytes);
  const Grouping grouping(call);
  for (int64_t begin = 0, end; begin < call.boxes; begin = end) {
    end = chunk_end(call, grouping, begin);
    const Plan<A> plan(call, grouping, begin, end, {}, work.threads);
    std::vector<Piece> pieces;
    Sizes sizes = work.sizes(plan);
    add_reading_pieces(work, plan, work.blocks, nullptr, pieces, sizes);
    work.run(pieces, directions(call).forward, sizes);
  }
}

// Adds the gradients of a plan's boxes to the maps' gradients, or makes them of it unless they exist already.
template <class A>
void add_to_input(const Work<A>& work, const Plan<A>& plan, const Level* grads, bool exists) {
  const Call& call = work.call;
  Sizes sizes = work.sizes(plan);
  if (info(call.kind).takes_maximum) sizes.second = block_bytes(work.windows() * plan.most_cells);
  const auto busy = static_cast<int64_t>(plan.groups.size()) * work.blocks;
  std::vector<Piece> pieces;
  size_t next_group = 0;
  for (int64_t l = 0; l < call.level_count; ++l) {
    const Level& grad = grads[l];
    if (grad.cells() == 0) continue;
    if (!exists) expect_large(grad.data, grad.images * grad.channels * grad.cells() * item_size(call.dtype));
    const int64_t rows = call.rank == 3 ? grad.depth : grad.height;
    const int64_t row_cells = grad.cells() / rows;
    for (int64_t image = 0; image < grad.images; ++image) {
      Piece piece{};
      piece.access = Access::windows;
      piece.add = exists;
      piece.grad = image_map(grad, image, call.dtype);
      if (call.levels[l].data) piece.input = image_map(call.levels[l], image, call.dtype);
      if (next_group < plan.groups.size() && plan.groups[next_group].level == l &&
          plan.groups[next_group].image == image) {
        const Group& group = plan.groups[next_group++];
        piece.boxes = plan.boxes.data() + group.begin;
        piece.box_count = group.end - group.begin;
      }
      if (exists && !piece.box_count) continue;
      // Few channels: rows of the map go to different threads. Every sum stays in the order of the boxes.
      int64_t bands = std::clamp<int64_t>(piece.box_count ? work.threads * 4 / std::max<int64_t>(busy, 1) : 1, 1,
                                          ceil_div(rows, 8));
      int64_t step = 1;    // blocks of a piece
      if (call.rank == 3)  // a band of slices stays in the cache, unless each band must find the maxima again
        bands = std::clamp(ceil_div(block_bytes(grad.cells()), info(call.kind).takes_maximum ? kVolume : kSlices),
                           bands, rows);
      if (info(call.kind).sensitive) {
        // Where channels are adjacent the blocks of a cell share lines of the cache: all of a band go together.
        const bool adjacent = grad.stride[1] == 1 && grad.channels > 1;
        if (adjacent) step = work.blocks;
        const int64_t cell = adjacent ? grad.channels * item_size(call.dtype) : kBlockBytes;
        bands = std::clamp(ceil_div(grad.cells() * cell, kBand), bands, rows);
      }
      for (int64_t block = 0; block < work.blocks; block += step)
        for (int64_t band = 0; band < bands; ++band) {
          piece.channel = block * work.lanes;
          piece.channel_end = std::min(piece.channel + step * work.lanes, work.channel_end);
          piece.row = cut(rows, bands, band);
          piece.row_end = cut(rows, bands, band + 1);
          sizes.block = std::max(sizes.block, block_bytes((piece.row_end - piece.row) * row_cells));
          pieces.push_back(piece);
        }
    }
  }
  work.run(pieces, directions(call).backward_input, sizes);
}

template <class A>
void run_backward_input(const Call& call, const Level* grads) {
  const Work<A> work(call);
  const Grouping grouping(call);
  // Between chunks the sums lie in the gradient itself, which a narrower type than the accumulator's must not.
  const bool narrow = item_size(call.dtype) < static_cast<int64_t>(sizeof(A));
  for (int64_t begin = 0, end = -1; end < call.boxes; begin = end) {
    end = narrow ? call.boxes : chunk_end(call, grouping, begin);
    const Plan<A> plan(call, grouping, begin, end, {true, false}, work.threads);
    add_to_input(work, plan, grads, begin > 0);
  }
}

template <class A, class T>
void run_backward_boxes(const Call& call, T* grad_rois) {
  const int64_t columns = call.columns(), edges = columns - 1;  // edges: or what the box has in their place
  std::memset(grad_rois, 0, static_cast<size_t>(call.boxes * columns) * sizeof(T));
  const Work<A> work(call);
  if (info(call.kind).whole_cells || !work.blocks) return;
  const int64_t parts = std::min(kParts, work.blocks);
  const Grouping grouping(call);
  for (int64_t begin = 0, end; begin < call.boxes; begin = end) {
    end = chunk_end(call, grouping, begin);
    const Plan<A> plan(call, grouping, begin, end, {true, true}, work.threads);
    const int64_t values = (end - begin) * edges;  // of one part
    std::vector<double> sums(static_cast<size_t>(parts * values));
    std::vector<Piece> pieces;
    Sizes sizes = work.sizes(plan);
    sizes.second = block_bytes(work.windows() * plan.most_cells);
    add_reading_pieces(work, plan, parts, sums.data(), pieces, sizes);
    work.run(pieces, directions(call).backward_boxes, sizes);
    for (int64_t i = 0; i < end - begin; ++i)
      for (int64_t edge = 0; edge < edges; ++edge) {
        double total = 0;
        for (int64_t part = 0; part < parts; ++part)
          total += sums[static_cast<size_t>(part * values + i * edges + edge)];
        grad_rois[columns * plan.boxes[static_cast<size_t>(i)].row + 1 + edge] = static_cast<T>(total);
      }
  }
}

}  // namespace

int64_t forward(const Call& call) {
  const int64_t bad = first_bad_row(call);
  if (bad >= 0 || !call.boxes) return bad;
  call.dtype == DType::float64 ? run_forward<double>(call) : run_forward<float>(call);
  return -1;
}

int64_t backward_input(const Call& call, const Level* grads) {
  const int64_t bad = first_bad_row(call);
  const bool any = std::any_of(grads, grads + call.level_count,
                               [](const Level& grad) { return grad.images && grad.channels && grad.cells(); });
  if (bad >= 0 || !any) return bad;
  call.dtype == DType::float64 ? run_backward_input<double>(call, grads) : run_backward_input<float>(call, grads);
  return -1;
}

int64_t backward_boxes(const Call& call, void* grad_rois) {
  const int64_t bad = first_bad_row(call);
  if (bad >= 0 || !call.boxes) return bad;
  auto run = [&](auto* typed) {
    call.dtype == DType::float64 ? run_backward_boxes<double>(call, typed) : run_backward_boxes<float>(call, typed);
  };
  call.rois_f64 ? run(static_cast<double*>(grad_rois)) : run(static_cast<float*>(grad_rois));
  return -1;
}

}  // namespace roialign
