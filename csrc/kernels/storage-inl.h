// The types of maps, and what is made of them: converted here, at the edge, and nowhere else.
#pragma once

#include "kernels/lanes-inl.h"

namespace roialign::ROI_SET {

struct Half {
  uint16_t bits;
};
struct BFloat {
  uint16_t bits;
};

// A kernel for each dtype of a map, by DType.
#define ROI_EACH_TYPE(f) {f<float>, f<double>, f<Half>, f<BFloat>}
extern const Kernel forward_kernels[kMapDTypes], backward_input_kernels[kMapDTypes], backward_boxes_kernels[kMapDTypes];
extern const Kernel sensitive_forward_kernels[kMapDTypes], sensitive_backward_kernels[kMapDTypes],
    sensitive_box_grad_kernels[kMapDTypes];
extern const Kernel volume_forward_kernels[kMapDTypes], volume_backward_kernels[kMapDTypes],
    volume_box_grad_kernels[kMapDTypes];
extern const Kernel gather_forward_kernels[kMapDTypes], gather_backward_kernels[kMapDTypes],
    gather_box_grad_kernels[kMapDTypes];

template <class S>
struct AccumulatorOf {
  using Type = float;
};
template <>
struct AccumulatorOf<double> {
  using Type = double;
};

ROI_INLINE float from_bits(uint32_t bits) {
  float f;
  __builtin_memcpy(&f, &bits, 4);
  return f;
}
ROI_INLINE uint32_t to_bits(float f) {
  uint32_t bits;
  __builtin_memcpy(&bits, &f, 4);
  return bits;
}

ROI_INLINE float widen(float s) { return s; }
ROI_INLINE double widen(double s) { return s; }
ROI_INLINE float widen(BFloat s) { return from_bits(static_cast<uint32_t>(s.bits) << 16); }
#if defined(__aarch64__)  // one instruction, which torch.set_flush_denormal does not concern
ROI_INLINE float widen(Half s) {
  __fp16 half;
  __builtin_memcpy(&half, &s.bits, 2);
  return half;
}
#else
ROI_INLINE float widen(Half s) {
  const uint32_t sign = static_cast<uint32_t>(s.bits & 0x8000u) << 16, magnitude = s.bits & 0x7fffu;
  // Subnormals are counts of 2^-24. No subnormal float is made on the way: torch.set_flush_denormal would make it zero.
  const uint32_t tiny = to_bits(static_cast<float>(static_cast<int32_t>(magnitude)) * from_bits(0x33800000u));
  const uint32_t normal = (magnitude << 13) + (magnitude >= 0x7c00u ? 0x70000000u : 0x38000000u);
  return from_bits(sign | (magnitude < 0x400u ? tiny : normal));
}
#endif

// Narrowing rounds to nearest, ties to even.
ROI_INLINE void narrow(float a, float& s) { s = a; }
ROI_INLINE void narrow(double a, double& s) { s = a; }
ROI_INLINE void narrow(float a, BFloat& s) {
  const uint32_t bits = to_bits(a);
  const uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  s.bits = static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? (bits >> 16 | 0x40u) : rounded);
}
#if defined(__aarch64__)
ROI_INLINE void narrow(float a, Half& s) {
  const __fp16 half = a;
  __builtin_memcpy(&s.bits, &half, 2);
}
#else
ROI_INLINE void narrow(float a, Half& s) {
  const uint32_t bits = to_bits(a), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
  // Below 2^-14 halves are spaced 2^-24: adding 0.5 makes the float adder round to exactly that.
  const uint32_t tiny = to_bits(from_bits(magnitude) + 0.5f) - 0x3f000000u;
  const uint32_t normal = (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
  uint32_t half = magnitude < 0x38800000u ? tiny : normal;
  half = magnitude >= 0x477ff000u ? 0x7c00u : half;  // 65520 and above round to infinity
  half = magnitude > 0x7f800000u ? (0x7e00u | (magnitude >> 13 & 0x3ffu)) : half;
  s.bits = static_cast<uint16_t>(sign | half);
}
#endif

template <class S>
struct Storage {
  using A = typename AccumulatorOf<S>::Type;
  static ROI_INLINE Lanes<A> load(const S* from) {
    if constexpr (sizeof(S) == sizeof(A)) {
      return Lanes<A>::load(from);
    } else {
      A wide[kLanes<A>];
      for (int i = 0; i < kLanes<A>; ++i) wide[i] = widen(from[i]);
      return Lanes<A>::load(wide);
    }
  }
  static ROI_INLINE void store(S* to, const Lanes<A>& lanes) {
    if constexpr (sizeof(S) == sizeof(A)) {
      lanes.store(to);
    } else {
      A wide[kLanes<A>];
      lanes.store(wide);
      for (int i = 0; i < kLanes<A>; ++i) narrow(wide[i], to[i]);
    }
  }
  // One pixel in its own lanes, or two pixels in halves of them, the first in the lower half.
  static ROI_INLINE Lanes<A> narrowed(const A* from) {
    if constexpr (sizeof(S) == sizeof(A)) {
      return Lanes<A>::load(from);
    } else {
      S pair[2 * kLanes<A>];
      for (int i = 0; i < 2 * kLanes<A>; ++i) narrow(from[i], pair[i % kLanes<A> * 2 + i / kLanes<A>]);
      Lanes<A> bits;
      __builtin_memcpy(&bits, pair, sizeof bits);
      return bits;
    }
  }
  static ROI_INLINE Lanes<A> load_some(const S* from, int count) {
    S all[kLanes<A>] = {};
    for (int i = 0; i < count; ++i) all[i] = from[i];
    return load(all);
  }
  static ROI_INLINE void store_some(S* to, const Lanes<A>& lanes, int count) {
    S all[kLanes<A>];
    store(all, lanes);
    for (int i = 0; i < count; ++i) to[i] = all[i];
  }
};

#if defined(__AVX512F__) && defined(__AVX512BW__)
ROI_INLINE FloatVec vec(__m512 x) { return reinterpret_cast<FloatVec>(x); }
// Rounded to bfloat16, in the upper halves.
ROI_INLINE __m512i bfloats(__m512 x) {
  const __m512i bits = _mm512_castps_si512(x),
                odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i r = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
  return _mm512_mask_or_epi32(r, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), bits, _mm512_set1_epi32(0x400000));
}
template <>
ROI_INLINE Lanes<float> Storage<BFloat>::load(const BFloat* from) {
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  return {{vec(_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16)))}};
}
template <>
ROI_INLINE void Storage<BFloat>::store(BFloat* to, const Lanes<float>& lanes) {
  const __m512i r = _mm512_srli_epi32(bfloats(reinterpret_cast<__m512>(lanes.v[0])), 16);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi32_epi16(r));
}
template <>
ROI_INLINE Lanes<float> Storage<BFloat>::narrowed(const float* from) {
  const __m512i first = _mm512_srli_epi32(bfloats(_mm512_loadu_ps(from)), 16),
                second = bfloats(_mm512_loadu_ps(from + 16));
  return {{vec(_mm512_castsi512_ps(_mm512_mask_blend_epi16(0xaaaaaaaau, first, second)))}};
}
template <>
ROI_INLINE Lanes<float> Storage<Half>::narrowed(const float* from) {
  auto rounded = [](const float* at) {  // in the lower halves
    return _mm512_cvtepu16_epi32(_mm512_cvtps_ph(_mm512_loadu_ps(at), _MM_FROUND_TO_NEAREST_INT));
  };
  const __m512i second = _mm512_slli_epi32(rounded(from + 16), 16);
  return {{vec(_mm512_castsi512_ps(_mm512_or_si512(rounded(from), second)))}};
}
template <>
ROI_INLINE Lanes<float> Storage<Half>::load(const Half* from) {
  return {{vec(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))))}};
}
template <>
ROI_INLINE void Storage<Half>::store(Half* to, const Lanes<float>& lanes) {
  const auto x = reinterpret_cast<__m512>(lanes.v[0]);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}
#elif defined(__AVX2__) && defined(__F16C__)
// Rounded to bfloat16, in the upper halves.
ROI_INLINE __m256i bfloats(__m256 x) {
  const __m256i bits = _mm256_castps_si256(x),
                odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i r = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  return _mm256_blendv_epi8(r, quiet, _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q)));
}
template <>
ROI_INLINE Lanes<float> Storage<BFloat>::load(const BFloat* from) {
  Lanes<float> r;
  for (int i = 0; i < 2; ++i) {
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from) + i);
    r.v[i] = reinterpret_cast<FloatVec>(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
  }
  return r;
}
template <>
ROI_INLINE void Storage<BFloat>::store(BFloat* to, const Lanes<float>& lanes) {
  auto rounded = [](FloatVec lane) { return _mm256_srli_epi32(bfloats(reinterpret_cast<__m256>(lane)), 16); };
  const __m256i both = _mm256_packus_epi32(rounded(lanes.v[0]), rounded(lanes.v[1]));  // halves of each alternate
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_permute4x64_epi64(both, 0xd8));
}
template <>
ROI_INLINE Lanes<float> Storage<BFloat>::narrowed(const float* from) {
  Lanes<float> r;
  for (int i = 0; i < 2; ++i) {
    const __m256i first = _mm256_srli_epi32(bfloats(_mm256_loadu_ps(from + 8 * i)), 16);
    const __m256i second = bfloats(_mm256_loadu_ps(from + 16 + 8 * i));
    r.v[i] = reinterpret_cast<FloatVec>(_mm256_blend_epi16(first, second, 0xaa));
  }
  return r;
}
template <>
ROI_INLINE Lanes<float> Storage<Half>::narrowed(const float* from) {
  auto rounded = [](const float* at) {  // in the lower halves
    return _mm256_cvtepu16_epi32(_mm256_cvtps_ph(_mm256_loadu_ps(at), _MM_FROUND_TO_NEAREST_INT));
  };
  Lanes<float> r;
  for (int i = 0; i < 2; ++i) {
    const __m256i second = _mm256_slli_epi32(rounded(from + 16 + 8 * i), 16);
    r.v[i] = reinterpret_cast<FloatVec>(_mm256_or_si256(rounded(from + 8 * i), second));
  }
  return r;
}
template <>
ROI_INLINE Lanes<float> Storage<Half>::load(const Half* from) {
  const auto* p = reinterpret_cast<const __m128i*>(from);
  return {{reinterpret_cast<FloatVec>(_mm256_cvtph_ps(_mm_loadu_si128(p))),
           reinterpret_cast<FloatVec>(_mm256_cvtph_ps(_mm_loadu_si128(p + 1)))}};
}
template <>
ROI_INLINE void Storage<Half>::store(Half* to, const Lanes<float>& lanes) {
  auto* p = reinterpret_cast<__m128i*>(to);
  for (int i = 0; i < 2; ++i)
    _mm_storeu_si128(p + i, _mm256_cvtps_ph(reinterpret_cast<__m256>(lanes.v[i]), _MM_FROUND_TO_NEAREST_INT));
}
#endif

}  // namespace roialign::ROI_SET
