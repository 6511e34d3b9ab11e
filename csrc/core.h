// The plain-data interface of the core: what Python hands over, and the three entry points.
// Nothing here knows about PyTorch: raw pointers, sizes, and strides counted in elements.
#pragma once

#include <cstdint>

namespace roialign {

// What becomes of a bin: the mean or the maximum of its samples, the integral over it, the maximum of its whole cells;
// the mean of its samples or of its whole cells, in channels of its own; the mean of samples in a rotated box, or in a
// bin that is moved for itself.
enum class Kind : int { avg, max, integral, cells, ps_avg, ps_cells, rotated, moved };
// What a row of the rois holds after the index of its image: the lower corner, then the upper one, x first; the centre,
// width, height and angle; or x1, y1, x2, y2, then by how many boxes each bin is moved along x, then along y.
enum class Form : int { corners, rotated, moved };
struct KindInfo {
  const char* name;    // in Python and in the documentation
  bool takes_maximum;  // so that the gradient to the maps depends on their values
  bool sensitive;      // to the position: each bin has channels of the map for itself
  bool whole_cells;    // in place of samples, so that there is no gradient to the boxes
  Form form = Form::corners;

  // Whether no two matrices make it: each bin has cells of its own.
  constexpr bool gathers() const { return form != Form::corners; }
  // Whether it takes maps of rank 2 alone.
  constexpr bool planar() const { return sensitive || gathers(); }
};
inline constexpr KindInfo kKinds[] = {
    {"avg", false, false, false},
    {"max", true, false, false},
    {"integral", false, false, false},
    {"cells", true, false, true},
    {"ps_avg", false, true, false},
    {"ps_cells", false, true, true},
    {"rotated", false, false, false, Form::rotated},
    {"moved", false, false, false, Form::moved},
};  // by Kind
inline const KindInfo& info(Kind kind) { return kKinds[static_cast<int>(kind)]; }

enum class DType : int { float32, float64, float16, bfloat16, int64 };
struct DTypeInfo {
  const char* name;  // in PyTorch
  int64_t bytes;
};
inline constexpr DTypeInfo kDTypes[] = {
    {"float32", 4}, {"float64", 8}, {"float16", 2}, {"bfloat16", 2}, {"int64", 8}};  // by DType
inline constexpr int kMapDTypes = 4;  // the first ones are those of maps; a box's level alone is int64

// One feature map of the pyramid, [images, channels, depth, height, width] with any non-negative strides. Axes that
// maps of a lower rank lack have one cell.
struct Level {
  char* data = nullptr;
  int64_t images = 0, channels = 0, depth = 1, height = 1, width = 0;
  int64_t stride[5] = {0, 0, 0, 0, 0};
  double scale_z = 1, scale_y = 1, scale_x = 1;

  int64_t cells() const { return depth * height * width; }
};

// Everything the three directions share.
struct Call {
  Kind kind = Kind::avg;
  DType dtype = DType::float32;
  int rank = 2;  // axes of a map: x; y and x; z, y and x
  const Level* levels = nullptr;
  int64_t level_count = 0;
  const void* rois = nullptr;  // [boxes, columns()]: the image, then what the kind's form says
  bool rois_f64 = false;
  int64_t boxes = 0;
  const int64_t* level_of_box = nullptr;  // null: every box is on level 0
  int32_t pooled_d = 1, pooled_h = 1, pooled_w = 0;
  int64_t sampling_ratio = 0;
  bool aligned = false;
  char* pooled = nullptr;  // [boxes, channels, pooled_d, pooled_h, pooled_w]: the output, or its gradient
  bool pooled_channels_last = false;

  // Channels of the map for one of the output.
  int64_t group() const { return info(kind).sensitive ? bins() : 1; }
  int64_t bins() const { return int64_t{pooled_h} * pooled_w; }  // of one pooled slice
  int64_t columns() const {
    const Form form = info(kind).form;
    return form == Form::moved ? 5 + 2 * bins() : form == Form::rotated ? 6 : 1 + 2 * int64_t{rank};
  }
};

// Each returns the first row of `rois` whose image or level does not exist, or -1 when the work is done.
// Nothing is read or written in the first case.
int64_t forward(const Call& call);
// `grads` mirrors call.levels and is overwritten everywhere. The inputs are read only by the max kinds.
int64_t backward_input(const Call& call, const Level* grads);
// `grad_rois` is as large as the rois, and of their type.
int64_t backward_boxes(const Call& call, void* grad_rois);

}  // namespace roialign
