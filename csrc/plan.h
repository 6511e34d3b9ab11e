// Which boxes lie on which image, in what order they are taken, and their tables.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "core.h"
#include "tables.h"

namespace roialign {

// The boxes [begin, end) of a plan lie on one image of one level.
struct Group {
  int64_t level, image, begin, end;
};

// The first row of the rois whose image or level does not exist, or -1.
int64_t first_bad_row(const Call& call);

// All rows of the rois ordered by (level, image), rows of one image in their given order.
struct Grouping {
  std::vector<int64_t> rows;
  std::vector<Group> groups;
  explicit Grouping(const Call& call);
};

// The cells that a box's window of one slice has room for; of a stencil, which need not touch most of them, those that
// it packs.
template <class A>
int64_t touched_cells(const Box<A>& box) {
  return int64_t{box.y.touched} * box.x.touched;
}
template <class A>
int64_t packed_cells(const Box<A>& box) {
  return box.stencil ? box.stencil->cells : touched_cells(box);
}

// The tables of the boxes at places [begin, end) of a grouping. Within a group the boxes are ordered by their first
// touched row (slice of a volume), then by their row in the rois: an order that depends on nothing but the boxes.
template <class A>
class Plan {
 public:
  Plan(const Call& call, const Grouping& grouping, int64_t begin, int64_t end, Wanted wanted, int64_t threads);

  std::vector<Box<A>> boxes;
  std::vector<Group> groups;
  int64_t most_columns = 0;  // touched by one box
  int64_t most_cells = 0;

 private:
  std::vector<std::unique_ptr<Arena>> arenas_;
};

}  // namespace roialign
