// What Python hands over, checked. Whatever a caller says, what passes here is read and written inside its memory only.
#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>
#include <vector>

#include "core.h"

namespace roialign {

// A call's maps and the rest of it, which points to them.
struct Arguments {
  std::vector<Level> levels;
  Call call;
};

// Throws ValueError if there is no such kind.
Kind to_kind(int64_t kind);

// An array is a tuple (address, bytes from there to the end of its memory, number of its dtype, shape, strides,
// tensor); the tensor keeps the memory alive and is named in errors. `maps` is a tuple of arrays, `scales` a sequence
// of z, y and x for each (as many as it has), `level` an array or None, `pooled` the output or its gradient, `named`
// what errors call it. Throws ValueError or TypeError: the argument, what came, what is expected.
Arguments to_arguments(Kind kind, nanobind::handle maps, nanobind::handle rois, nanobind::handle level,
                       nanobind::handle pooled, const char* named, nanobind::handle size, nanobind::handle scales,
                       int64_t sampling_ratio, bool aligned);

// The gradients to the maps, a tuple of arrays: of the shape and dtype of the call's maps.
std::vector<Level> to_grads(nanobind::handle grads, const Arguments& arguments);

}  // namespace roialign
