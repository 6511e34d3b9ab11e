// Bins that have channels of their own, as the planes of these channels are read: one bin of all boxes at a time.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/kernels.h"
#include "plan.h"
#include "tables.h"

namespace roialign {

// How the bins of a plan's boxes lie on their maps. Boxes are taken kBinBoxes at a time.
template <class A>
class BinTables {
 public:
  BinTables(const Call& call, const Plan<A>& plan, int64_t threads);
  BinTables(const BinTables&) = delete;
  BinTables& operator=(const BinTables&) = delete;

  // Those of the boxes of a group, as many as it has boxes divided by kBinBoxes, rounded up.
  const Bins<A>* of_group(size_t group) const { return &bins_[first_[group]]; }

 private:
  std::vector<size_t> first_;
  std::vector<Bins<A>> bins_;
  std::vector<BinRows<A>> rows_;
  std::vector<int32_t> ends_, column_;
  std::vector<A> weight_;
};

}  // namespace roialign
