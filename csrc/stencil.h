// Boxes as stencils, for the kinds whose samples lie on no grid of rows and columns: rotated boxes, and bins that are
// moved one by one.
#pragma once

#include <cstdint>

#include "tables.h"

namespace roialign {

// Fills boxes[i] from row boxes[i].row of the rois, for i in [0, count), as build_tables does.
template <class A, class T>
void build_stencils(const Call& call, Wanted wanted, Box<A>* boxes, int64_t count, Arena& arena);

// About how many taps a row of the rois makes.
double expected_taps(const Call& call, int64_t row);

}  // namespace roialign
