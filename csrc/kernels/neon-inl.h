// Halves on ARM: four at a time, which compilers do not find by themselves.
#pragma once

#include "kernels/storage-inl.h"

#if defined(__aarch64__)
#include <arm_neon.h>

namespace roialign::ROI_SET {

ROI_INLINE uint16x4_t narrow_four(FloatVec x) {
  return vreinterpret_u16_f16(vcvt_f16_f32(reinterpret_cast<float32x4_t>(x)));
}

template <>
ROI_INLINE Lanes<float> Storage<Half>::load(const Half* from) {
  Lanes<float> r;
  for (int i = 0; i < 4; ++i)
    r.v[i] = reinterpret_cast<FloatVec>(vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(&from[4 * i].bits))));
  return r;
}
template <>
ROI_INLINE void Storage<Half>::store(Half* to, const Lanes<float>& lanes) {
  for (int i = 0; i < 4; ++i) vst1_u16(&to[4 * i].bits, narrow_four(lanes.v[i]));
}
template <>
ROI_INLINE Lanes<float> Storage<Half>::narrowed(const float* from) {
  const auto first = Lanes<float>::load(from), second = Lanes<float>::load(from + 16);
  Lanes<float> pair;
  for (int i = 0; i < 4; ++i) {
    const uint32x4_t low = vmovl_u16(narrow_four(first.v[i])), high = vshll_n_u16(narrow_four(second.v[i]), 16);
    pair.v[i] = reinterpret_cast<FloatVec>(vorrq_u32(low, high));
  }
  return pair;
}

}  // namespace roialign::ROI_SET
#endif
