#include "tables.h"

#include <algorithm>
#include <cstdlib>
#include <limits>
#include <new>
#include <type_traits>
#include <vector>

#include "rules.h"
#include "stencil.h"

namespace roialign {

struct Arena::Chunk {
  Chunk* older;
};

Arena::~Arena() {
  while (newest_) {
    Chunk* older = newest_->older;
    std::free(newest_);
    newest_ = older;
  }
}

void* Arena::bytes(size_t size) {
  constexpr size_t unit = 16;
  size = (size + unit - 1) / unit * unit;
  if (size > left_) {
    // Chunks grow with use, so that one small box costs one small allocation.
    constexpr size_t least = 8 << 10;
    const size_t chunk = std::max(size, newest_ ? 16 * least : least);
    auto* memory = static_cast<Chunk*>(std::malloc(unit + chunk));
    if (!memory) throw std::bad_alloc();
    memory->older = newest_;
    newest_ = memory;
    free_ = reinterpret_cast<char*>(memory) + unit;
    left_ = chunk;
  }
  void* result = free_;
  free_ += size;
  left_ -= size;
  return result;
}

namespace {

// Turns taps into the arrays the kernels read. Lives as long as one batch of boxes, so its vectors are reused.
template <class A>
class Compactor {
 public:
  explicit Compactor(Arena& arena) : arena_(arena) {}

  void compact(const Taps& taps, const Call& call, Wanted wanted, bool pad, Axis<A>& axis) {
    axis = Axis<A>();
    number_cells(taps, axis);
    const KindInfo& kind = info(call.kind);
    const bool contracts = !kind.takes_maximum && !kind.sensitive;
    if (wanted.transpose && contracts) transpose(taps, axis);
    copy_rows(taps, axis, pad && contracts);
    if (!taps.group.empty()) axis.group = copy(taps.group);
  }

 private:
  template <class V>
  V* copy(const std::vector<V>& from) {
    V* to = arena_.take<V>(from.size());
    std::copy(from.begin(), from.end(), to);
    return to;
  }

  // Finds the touched cells and gives each its position.
  void number_cells(const Taps& taps, Axis<A>& axis) {
    if (taps.index.empty()) return;
    const auto [least, most] = std::minmax_element(taps.index.begin(), taps.index.end());
    first_ = *least;
    const auto span = static_cast<size_t>(*most - *least + 1);
    position_.assign(span, 0);
    for (const int32_t cell : taps.index) position_[static_cast<size_t>(cell - first_)] = 1;
    size_t runs = 0;
    for (size_t i = 0; i < span; ++i) runs += position_[i] && !(i && position_[i - 1]);
    Run* run = arena_.take<Run>(runs);
    int32_t* cells = arena_.take<int32_t>(span);
    int32_t count = 0;
    Run* open = run - 1;
    for (size_t i = 0; i < span; ++i) {
      if (!position_[i]) continue;
      const auto cell = first_ + static_cast<int32_t>(i);
      if (!i || !position_[i - 1]) *++open = {cell, count, 0};
      ++open->count;
      cells[count++] = cell;
    }
    // Only now replace the marks by numbers: position 0 would have read as a gap.
    for (int32_t i = 0; i < count; ++i) position_[static_cast<size_t>(cells[i] - first_)] = i;
    axis.cell = cells;
    axis.touched = count;
    axis.run = run;
    axis.runs = static_cast<int32_t>(runs);
  }

  int32_t position(int32_t cell) const { return position_[static_cast<size_t>(cell - first_)]; }

  void transpose(const Taps& taps, Axis<A>& axis) {
    const auto touched = static_cast<size_t>(axis.touched);
    int32_t* begin = arena_.take<int32_t>(touched + 1);
    int32_t* index = arena_.take<int32_t>(taps.index.size());
    A* weight = arena_.take<A>(taps.index.size());
    std::fill(begin, begin + touched + 1, 0);
    for (const int32_t cell : taps.index) ++begin[position(cell) + 1];
    for (size_t i = 0; i < touched; ++i) begin[i + 1] += begin[i];
    fill_.assign(begin, begin + touched);
    for (size_t row = 0; row < taps.rows(); ++row) {
      for (auto t = static_cast<size_t>(taps.begin[row]); t < static_cast<size_t>(taps.begin[row + 1]); ++t) {
        const auto to = fill_[static_cast<size_t>(position(taps.index[t]))]++;
        index[to] = static_cast<int32_t>(row);
        weight[to] = static_cast<A>(taps.weight[t]);
      }
    }
    axis.cells = {begin, index, weight};
  }

  // If `pad`, rows of one to four taps get the same length, so that the kernels' innermost loop over columns has a
  // fixed one (over rows the choice is made once per strip, and padding would only add work). The padding repeats the
  // last tap, each copy with its share of the weight: no new cell is read and nothing is multiplied by an added zero,
  // which would turn an infinity into a NaN.
  void copy_rows(const Taps& taps, Axis<A>& axis, bool pad) {
    const size_t rows = taps.rows();
    int32_t fewest = INT32_MAX, most = 0;  // of no rows, if they are not padded
    for (size_t r = 0; pad && r < rows; ++r) {
      fewest = std::min(fewest, taps.in_row(r));
      most = std::max(most, taps.in_row(r));
    }
    if (fewest >= 1 && most <= 4) axis.uniform = most;
    const size_t count = axis.uniform ? rows * static_cast<size_t>(axis.uniform) : taps.index.size();
    int32_t* begin = arena_.take<int32_t>(rows + 1);
    int32_t* index = arena_.take<int32_t>(count);
    A* weight = arena_.take<A>(count);
    A* dlo = taps.derivative ? arena_.take<A>(count) : nullptr;
    A* dhi = taps.derivative ? arena_.take<A>(count) : nullptr;
    int32_t to = 0;
    for (size_t r = 0; r < rows; ++r) {
      begin[r] = to;
      const int32_t n = taps.in_row(r);
      const int32_t length = axis.uniform ? axis.uniform : n;
      for (int32_t i = 0; i < length; ++i, ++to) {
        const auto t = static_cast<size_t>(taps.begin[r] + std::min(i, n - 1));
        const double share = i >= n - 1 ? 1.0 / (length - n + 1) : 1.0;
        index[to] = position(taps.index[t]);
        weight[to] = static_cast<A>(taps.weight[t] * share);
        if (!dlo) continue;
        dlo[to] = static_cast<A>(taps.dlo[t] * share);
        dhi[to] = static_cast<A>(taps.dhi[t] * share);
      }
    }
    begin[rows] = to;
    axis.bins = {begin, index, weight};
    axis.dlo = dlo;
    axis.dhi = dhi;
  }

  Arena& arena_;
  int32_t first_ = 0;
  std::vector<int32_t> position_, fill_;
};

// The taps of one axis. False if the box is not finite there.
template <class A, class T>
bool axis_taps(Taps& taps, const Call& call, T lo, T hi, double scale, int32_t bins, int64_t length_, bool derivative) {
  if constexpr (std::is_same_v<T, float>) {
    if (!fits_float(lo, hi, scale, length_, call.sampling_ratio))
      return axis_taps<A, double>(taps, call, lo, hi, scale, bins, length_, derivative);
  }
  taps.start(derivative, static_cast<double>(std::numeric_limits<A>::denorm_min()) / 2);
  const auto length = static_cast<int32_t>(length_);
  if (call.kind == Kind::integral) return integral_taps(taps, lo, hi, scale, bins, length);
  const KindInfo& kind = info(call.kind);
  if (kind.whole_cells) return cell_taps(taps, lo, hi, scale, bins, length, !kind.takes_maximum);
  const Samples<T> samples(lo, hi, scale, bins, length, call.sampling_ratio, call.aligned, derivative);
  if (!samples.finite) return false;
  call.kind == Kind::max ? sample_taps(taps, samples) : average_taps(taps, samples);
  return true;
}

template <class A, class T>
void build(const Call& call, Wanted wanted, Box<A>* boxes, int64_t count, Arena& arena) {
  Taps taps_z, taps_y, taps_x;
  Compactor<A> compactor(arena);
  Axis<A> row;  // of a map that has no other
  if (call.rank == 1) {
    one_cell(taps_y, call.kind == Kind::max, wanted.derivative);
    compactor.compact(taps_y, call, wanted, false, row);
  }
  for (int64_t i = 0; i < count; ++i) {
    Box<A>& box = boxes[i];
    const T* lower = static_cast<const T*>(call.rois) + call.columns() * box.row + 1;  // x first
    const T* upper = lower + call.rank;
    const Level& level = call.levels[call.level_of_box ? call.level_of_box[box.row] : 0];
    auto taps = [&](Taps& to, int axis, double scale, int32_t bins, int64_t length) {
      return axis_taps<A>(to, call, lower[axis], upper[axis], scale, bins, length, wanted.derivative);
    };
    box.finite = taps(taps_x, 0, level.scale_x, call.pooled_w, level.width) &&
                 (call.rank < 2 || taps(taps_y, 1, level.scale_y, call.pooled_h, level.height)) &&
                 (call.rank < 3 || taps(taps_z, 2, level.scale_z, call.pooled_d, level.depth));
    if (!box.finite) continue;
    if (call.rank == 3) {
      auto* z = arena.take<Axis<A>>(1);
      compactor.compact(taps_z, call, {true, wanted.derivative}, false, *z);
      box.z = z;
    }
    if (call.rank == 1)
      box.y = row;
    else
      compactor.compact(taps_y, call, wanted, false, box.y);
    compactor.compact(taps_x, call, wanted, true, box.x);
  }
}

}  // namespace

template <class A>
void build_tables(const Call& call, Wanted wanted, Box<A>* boxes, int64_t count, Arena& arena) {
  if (info(call.kind).gathers())
    return call.rois_f64 ? build_stencils<A, double>(call, wanted, boxes, count, arena)
                         : build_stencils<A, float>(call, wanted, boxes, count, arena);
  call.rois_f64 ? build<A, double>(call, wanted, boxes, count, arena)
                : build<A, float>(call, wanted, boxes, count, arena);
}

template void build_tables<float>(const Call&, Wanted, Box<float>*, int64_t, Arena&);
template void build_tables<double>(const Call&, Wanted, Box<double>*, int64_t, Arena&);

}  // namespace roialign
