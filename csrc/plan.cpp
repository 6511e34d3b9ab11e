#include "plan.h"

#include <algorithm>
#include <cmath>
#include <compare>
#include <mutex>
#include <utility>

#include "parallel.h"

namespace roialign {
namespace {

template <class T>
int64_t bad_row(const Call& call) {
  const T* rois = static_cast<const T*>(call.rois);
  const int64_t columns = call.columns();
  for (int64_t k = 0; k < call.boxes; ++k) {
    const int64_t level = call.level_of_box ? call.level_of_box[k] : 0;
    if (level < 0 || level >= call.level_count) return k;
    const auto image = static_cast<double>(rois[columns * k]);
    // Written so that NaN fails too.
    if (!(image >= 0 && image < static_cast<double>(call.levels[level].images) && image == std::floor(image))) return k;
  }
  return -1;
}

int64_t image_of(const Call& call, int64_t row) {
  const int64_t at = call.columns() * row;
  return call.rois_f64 ? static_cast<int64_t>(static_cast<const double*>(call.rois)[at])
                       : static_cast<int64_t>(static_cast<const float*>(call.rois)[at]);
}

}  // namespace

int64_t first_bad_row(const Call& call) { return call.rois_f64 ? bad_row<double>(call) : bad_row<float>(call); }

Grouping::Grouping(const Call& call) : rows(static_cast<size_t>(call.boxes)) {
  // Sorted, not counted: there may be many more images than boxes, as an expanded map has at no cost.
  struct Place {
    int64_t level, image, row;
    auto operator<=>(const Place&) const = default;
  };
  std::vector<Place> places;
  places.reserve(rows.size());
  for (int64_t k = 0; k < call.boxes; ++k)
    places.push_back({call.level_of_box ? call.level_of_box[k] : 0, image_of(call, k), k});
  if (!std::is_sorted(places.begin(), places.end())) std::sort(places.begin(), places.end());
  for (size_t i = 0; i < places.size(); ++i) {
    const Place& place = places[i];
    rows[i] = place.row;
    const auto at = static_cast<int64_t>(i);
    if (groups.empty() || groups.back().level != place.level || groups.back().image != place.image)
      groups.push_back({place.level, place.image, at, at});
    groups.back().end = at + 1;
  }
}

template <class A>
Plan<A>::Plan(const Call& call, const Grouping& grouping, int64_t begin, int64_t end, Wanted wanted, int64_t threads)
    : boxes(static_cast<size_t>(end - begin)) {
  for (int64_t i = begin; i < end; ++i)
    boxes[static_cast<size_t>(i - begin)].row = grouping.rows[static_cast<size_t>(i)];

  constexpr int64_t batch = 64;
  std::mutex mutex;
  const auto count = static_cast<int64_t>(boxes.size());
  for_each_task((count + batch - 1) / batch, threads, [&](auto& next) {
    auto arena = std::make_unique<Arena>();
    for (int64_t task; (task = next()) >= 0;) {
      const int64_t first = task * batch;
      build_tables<A>(call, wanted, boxes.data() + first, std::min(batch, count - first), *arena);
    }
    const std::lock_guard<std::mutex> lock(mutex);
    arenas_.push_back(std::move(arena));
  });

  for (const Group& group : grouping.groups) {
    const int64_t from = std::max(group.begin, begin), to = std::min(group.end, end);
    if (from < to) groups.push_back({group.level, group.image, from - begin, to - begin});
  }
  std::vector<std::pair<int64_t, size_t>> order;
  std::vector<Box<A>> sorted;
  for (const Group& group : groups) {
    if (group.end - group.begin < 2) continue;
    order.clear();
    for (auto i = static_cast<size_t>(group.begin); i < static_cast<size_t>(group.end); ++i) {
      const Axis<A>& slowest = boxes[i].z ? *boxes[i].z : boxes[i].y;
      order.emplace_back(slowest.touched ? slowest.cell[0] : 0, i);
    }
    std::sort(order.begin(), order.end());
    sorted.clear();
    for (const auto& entry : order) sorted.push_back(boxes[entry.second]);
    std::copy(sorted.begin(), sorted.end(), boxes.begin() + group.begin);
  }
  for (const Box<A>& box : boxes) {
    most_columns = std::max<int64_t>(most_columns, box.x.touched);
    most_cells = std::max(most_cells, touched_cells(box));
  }
}

template class Plan<float>;
template class Plan<double>;

}  // namespace roialign
