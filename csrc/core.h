// The plain-data interface of the core: what Python hands over, and the three entry points.
// Nothing here knows about PyTorch: raw pointers, sizes, and strides counted in elements.
#pragma once

#include <cstdint>

namespace roialign {

enum class Kind : int { align_avg = 0, align_max = 1, prroi = 2, roipool = 3 };
enum class DType : int { f32 = 0, f64 = 1, f16 = 2, bf16 = 3 };

// One feature map of the pyramid, [images, channels, height, width] with any non-negative strides.
struct Level {
  char* data = nullptr;
  int64_t images = 0, channels = 0, height = 0, width = 0;
  int64_t stride[4] = {0, 0, 0, 0};
  double scale_y = 1, scale_x = 1;
};

// Everything the three directions share.
struct Call {
  Kind kind = Kind::align_avg;
  DType dtype = DType::f32;
  const Level* levels = nullptr;
  int64_t level_count = 0;
  const void* rois = nullptr;  // [boxes, 5]: image, x1, y1, x2, y2
  bool rois_f64 = false;
  int64_t boxes = 0;
  const int64_t* level_of_box = nullptr;  // null: every box is on level 0
  int32_t pooled_h = 0, pooled_w = 0;
  int64_t sampling_ratio = 0;
  bool aligned = false;
  char* pooled = nullptr;  // [boxes, channels, pooled_h, pooled_w]: the output, or its gradient
  bool pooled_channels_last = false;
};

// Each returns the first row of `rois` whose image or level does not exist, or -1 when the work is done.
// Nothing is read or written in the first case.
int64_t forward(const Call& call);
// `grads` mirrors call.levels and is overwritten everywhere. The inputs are read only by the max kinds.
int64_t backward_input(const Call& call, const Level* grads);
// `grad_rois` is [boxes, 5] in the type of the rois.
int64_t backward_boxes(const Call& call, void* grad_rois);

}  // namespace roialign
