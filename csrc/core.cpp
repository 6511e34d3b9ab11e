// The three directions: cut the work into pieces that own what they write, and run them.
#include <algorithm>
#include <cstring>
#include <new>
#include <optional>
#include <utility>
#include <vector>

#include "bins.h"
#include "plan.h"
#include "stencil.h"
#include "work.h"

namespace roialign {
namespace {

// Boxes whose tables exist at the same time, where the direction allows it.
constexpr int64_t kChunk = 16384;
// And the taps of stencils, which take more memory than two matrices.
constexpr double kChunkTaps = 1 << 21;
// What of a map's gradient is made together where bins have their own channels and planes are copies: it stays in the
// second-level cache.
constexpr int64_t kBand = 256 << 10;
// And of copied planes where some channels go together.
constexpr int64_t kCopies = 1 << 20;
// What of a volume is packed at the same time at most, and what of its gradient is made together.
constexpr int64_t kVolume = 64 << 20, kSlices = 512 << 10;
// And of the boxes that a volume's slices are added to.
constexpr int64_t kBegun = 4 << 20;
// Sums over channels are cut in this many parts, whatever the number of threads.
constexpr int64_t kParts = 16;

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

// Where bins have channels of their own: whether a map's planes can be read and written where they are.
template <class A>
bool in_place(const Map& map, DType type) {
  return item_size(type) == static_cast<int64_t>(sizeof(A)) && map.pixel_stride == 1 && map.row_stride == map.width &&
         map.width >= kBinColumns;
}

// Whether it is less work to read the cells of some boxes one by one than to copy planes.
template <class A>
bool are_few(const Work<A>& work, const Plan<A>& plan, const Group& group, const Map& map) {
  const int64_t factor = map.channel_stride == 1 ? 1 : 4;  // a cell of one plane alone, in cells that are copied
  int64_t cells = 0;
  const int64_t all = map.height * map.width;
  for (int64_t i = group.begin; i < group.end && cells < all; ++i) {
    const Box<A>& box = plan.boxes[static_cast<size_t>(i)];
    if (!box.finite) continue;
    const int64_t taps = int64_t{box.y.bins.begin[work.call.pooled_h]} * box.x.bins.begin[work.call.pooled_w];
    cells += factor * ceil_div(taps, work.group);
  }
  return cells < all;
}

// Pieces of bins that have channels of their own: some channels, some rows of bins, and `bands` of the map's rows.
template <class A>
void add_bin_pieces(const Work<A>& work, Piece piece, const Map& map, int64_t bands, std::vector<Piece>& pieces,
                    Sizes& sizes) {
  const int64_t width = std::max<int64_t>(map.width, kBinColumns),
                copy = block_bytes(ceil_div(map.height, bands) * width);
  int64_t step = kBinGroup;
  if (piece.access == Access::windows) step = work.lanes;
  // Copies of a group's planes stay in the second-level cache; where channels are adjacent, lines serve one at a time.
  if (piece.access == Access::whole && (map.pixel_stride != 1 || kBinGroup * copy > kCopies)) step = 1;
  const int64_t groups = ceil_div(work.channels, step);
  const int64_t wanted = work.threads > 1 ? 8 * work.threads : 1, rows = work.call.pooled_h;
  const int64_t parts = std::clamp<int64_t>(ceil_div(wanted, groups), 1, rows);
  for (int64_t part = 0; part < parts; ++part)
    for (int64_t group = 0; group < groups; ++group)
      for (int64_t band = 0; band < bands; ++band) {
        piece.channel = group * step;
        piece.channel_end = std::min(work.channels, piece.channel + step);
        piece.bin = cut(rows, parts, part) * work.call.pooled_w;
        piece.bin_end = cut(rows, parts, part + 1) * work.call.pooled_w;
        piece.row = cut(map.height, bands, band);
        piece.row_end = cut(map.height, bands, band + 1);
        pieces.push_back(piece);
      }
  sizes.tile = std::max(sizes.tile, kBlockBytes * kBinBoxes);
  sizes.strips = std::max(sizes.strips, std::min<int64_t>(step, kBinGroup) * kBlockBytes * kBinBoxes);
  if (piece.access != Access::whole) return;
  sizes.block = std::max(sizes.block, step * copy);
  sizes.second = std::max(sizes.second, block_bytes(width));
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
    std::optional<BinTables<A>> tables;
    if (info(call.kind).sensitive) {
      tables.emplace(call, plan, work.threads);
      for (size_t i = 0; i < plan.groups.size(); ++i) {
        const Group& group = plan.groups[i];
        Piece piece{};
        piece.input = image_map(call.levels[group.level], group.image, call.dtype);
        piece.access = in_place<A>(piece.input, call.dtype)      ? Access::direct
                       : are_few(work, plan, group, piece.input) ? Access::windows
                                                                 : Access::whole;
        piece.boxes = plan.boxes.data() + group.begin;
        piece.box_count = group.end - group.begin;
        piece.bins = tables->of_group(i);
        add_bin_pieces(work, piece, piece.input, 1, pieces, sizes);
      }
    } else {
      add_reading_pieces(work, plan, work.blocks, nullptr, pieces, sizes);
    }
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
  std::optional<BinTables<A>> tables;
  if (info(call.kind).sensitive) tables.emplace(call, plan, work.threads);
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
        if (tables) piece.bins = tables->of_group(next_group);
        const Group& group = plan.groups[next_group++];
        piece.boxes = plan.boxes.data() + group.begin;
        piece.box_count = group.end - group.begin;
      }
      if (exists && !piece.box_count) continue;
      if (tables) {
        const bool direct = in_place<A>(piece.grad, call.dtype);
        piece.access = direct ? Access::direct : Access::whole;
        const int64_t parts = direct ? 1 : std::min(rows, ceil_div(block_bytes(grad.cells()), kBand));
        add_bin_pieces(work, piece, piece.grad, parts, pieces, sizes);
        continue;
      }
      // Few channels: rows of the map go to different threads. Every sum stays in the order of the boxes.
      int64_t bands = std::clamp<int64_t>(piece.box_count ? work.threads * 4 / std::max<int64_t>(busy, 1) : 1, 1,
                                          ceil_div(rows, 8));
      if (call.rank == 3)  // a band of slices stays in the cache, unless each band must find the maxima again
        bands = std::clamp(ceil_div(block_bytes(grad.cells()), info(call.kind).takes_maximum ? kVolume : kSlices),
                           bands, rows);
      for (int64_t block = 0; block < work.blocks; ++block)
        for (int64_t band = 0; band < bands; ++band) {
          piece.channel = block * work.lanes;
          piece.channel_end = std::min(piece.channel + work.lanes, work.channel_end);
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
