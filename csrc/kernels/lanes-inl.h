// One pixel of one channel block as vectors of the instruction set this file is compiled for.
//
// The sources of this folder are compiled once per instruction set, with ROI_SET naming it, and so is each `-inl.h`:
// all that they define lives in that set's own namespace, and nothing from the standard library is used, so that the
// linker cannot merge code of different sets.
#pragma once

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

#include "kernels/kernels.h"

namespace roialign::ROI_SET {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

#define ROI_INLINE inline __attribute__((always_inline))

typedef float FloatVec __attribute__((vector_size(kVectorBytes)));
typedef double DoubleVec __attribute__((vector_size(kVectorBytes)));
typedef float FloatVecAny __attribute__((vector_size(kVectorBytes), aligned(4), may_alias));
typedef double DoubleVecAny __attribute__((vector_size(kVectorBytes), aligned(8), may_alias));

template <class A>
struct VectorOf;
template <>
struct VectorOf<float> {
  using Type = FloatVec;
  using Any = FloatVecAny;
};
template <>
struct VectorOf<double> {
  using Type = DoubleVec;
  using Any = DoubleVecAny;
};

template <class A>
struct Lanes {
  static constexpr int parts = kBlockBytes / kVectorBytes;
  using Vec = typename VectorOf<A>::Type;
  using Any = typename VectorOf<A>::Any;
  static constexpr int width = kVectorBytes / static_cast<int>(sizeof(A));
  Vec v[parts];

  static ROI_INLINE Lanes load(const A* from) {
    Lanes r;
    for (int i = 0; i < parts; ++i) r.v[i] = *reinterpret_cast<const Any*>(from + i * width);
    return r;
  }
  static ROI_INLINE Lanes fill(A value) {
    Lanes r;
    for (int i = 0; i < parts; ++i) r.v[i] = value - Vec{};
    return r;
  }
  ROI_INLINE void store(A* to) const {
    for (int i = 0; i < parts; ++i) *reinterpret_cast<Any*>(to + i * width) = v[i];
  }
  ROI_INLINE Lanes times(A w) const { return times(fill(w)); }
  ROI_INLINE Lanes times(const Lanes& w) const {
    Lanes r;
    for (int i = 0; i < parts; ++i) r.v[i] = v[i] * w.v[i];
    return r;
  }
  // this += w * x, fused where the machine can.
  ROI_INLINE void add_times(A w, const Lanes& x) {
    for (int i = 0; i < parts; ++i) v[i] += w * x.v[i];
  }
  ROI_INLINE void add_product(const Lanes& x, const Lanes& y) {
    for (int i = 0; i < parts; ++i) v[i] += x.v[i] * y.v[i];
  }
  // The greater of both, lane by lane; NaN wins.
  ROI_INLINE void raise(const Lanes& x) {
    for (int i = 0; i < parts; ++i) v[i] = ((x.v[i] > v[i]) | (x.v[i] != x.v[i])) ? x.v[i] : v[i];
  }
  ROI_INLINE double sum() const {
    A all[kLanes<A>];
    store(all);
    double total = 0;
    for (int i = 0; i < kLanes<A>; ++i) total += static_cast<double>(all[i]);
    return total;
  }
};

// a0 b0 a1 b1 ... from the lower or the upper halves.
template <bool upper, class V>
ROI_INLINE V interleave(V a, V b) {
  constexpr int n = sizeof(V) / sizeof(a[0]), o = upper ? n / 2 : 0;
  if constexpr (n == 2) return __builtin_shufflevector(a, b, o, o + 2);
  if constexpr (n == 4) return __builtin_shufflevector(a, b, o, o + 4, o + 1, o + 5);
  if constexpr (n == 8) return __builtin_shufflevector(a, b, o, o + 8, o + 1, o + 9, o + 2, o + 10, o + 3, o + 11);
  if constexpr (n == 16)
    return __builtin_shufflevector(a, b, o, o + 16, o + 1, o + 17, o + 2, o + 18, o + 3, o + 19, o + 4, o + 20, o + 5,
                                   o + 21, o + 6, o + 22, o + 7, o + 23);
}

// Square transpose in registers: log2(n) perfect shuffles.
template <class V>
ROI_INLINE void transpose_square(V* r) {
  constexpr int n = sizeof(V) / sizeof(r[0][0]);
  for (int step = 1; step < n; step *= 2) {
    V t[n];
    for (int i = 0; i < n / 2; ++i) {
      t[2 * i] = interleave<false>(r[i], r[i + n / 2]);
      t[2 * i + 1] = interleave<true>(r[i], r[i + n / 2]);
    }
    for (int i = 0; i < n; ++i) r[i] = t[i];
  }
}

#if defined(__AVX512F__)
// The perfect shuffles cross 128-bit lanes and overwrite an operand, which spills; this form does neither.
template <>
ROI_INLINE void transpose_square(FloatVec* rows) {
  __m512 r[16], t[16];
  for (int i = 0; i < 8; ++i) {
    const auto a = reinterpret_cast<__m512>(rows[2 * i]), b = reinterpret_cast<__m512>(rows[2 * i + 1]);
    t[2 * i] = _mm512_unpacklo_ps(a, b);
    t[2 * i + 1] = _mm512_unpackhi_ps(a, b);
  }
  auto low = [](__m512 a, __m512 b) {
    return _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
  };
  auto high = [](__m512 a, __m512 b) {
    return _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
  };
  for (int q = 0; q < 16; q += 4) {  // now r[q + j] holds, in 128-bit lane l, column 4 l + j of rows q .. q + 3
    r[q] = low(t[q], t[q + 2]);
    r[q + 1] = high(t[q], t[q + 2]);
    r[q + 2] = low(t[q + 1], t[q + 3]);
    r[q + 3] = high(t[q + 1], t[q + 3]);
  }
  for (int j = 0; j < 4; ++j) {
    const __m512 even = _mm512_shuffle_f32x4(r[j], r[4 + j], 0x88), odd = _mm512_shuffle_f32x4(r[j], r[4 + j], 0xdd);
    const __m512 even2 = _mm512_shuffle_f32x4(r[8 + j], r[12 + j], 0x88);
    const __m512 odd2 = _mm512_shuffle_f32x4(r[8 + j], r[12 + j], 0xdd);
    rows[j] = reinterpret_cast<FloatVec>(_mm512_shuffle_f32x4(even, even2, 0x88));
    rows[4 + j] = reinterpret_cast<FloatVec>(_mm512_shuffle_f32x4(odd, odd2, 0x88));
    rows[8 + j] = reinterpret_cast<FloatVec>(_mm512_shuffle_f32x4(even, even2, 0xdd));
    rows[12 + j] = reinterpret_cast<FloatVec>(_mm512_shuffle_f32x4(odd, odd2, 0xdd));
  }
}
#endif

// r[i] lane j becomes r[j] lane i.
template <class A>
ROI_INLINE void transpose(Lanes<A>* r) {
  using L = Lanes<A>;
  constexpr int w = L::width, n = L::parts;
  typename L::Vec blocks[n][n][w];
  for (int i = 0; i < n; ++i)
    for (int j = 0; j < n; ++j) {
      for (int k = 0; k < w; ++k) blocks[i][j][k] = r[i * w + k].v[j];
      transpose_square(blocks[i][j]);
    }
  for (int i = 0; i < n; ++i)
    for (int j = 0; j < n; ++j)
      for (int k = 0; k < w; ++k) r[j * w + k].v[i] = blocks[i][j][k];
}

// --- storage types: converted here, at the edge, and nowhere else ---

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
    A wide[kLanes<A>];
    for (int i = 0; i < kLanes<A>; ++i) wide[i] = i < count ? widen(from[i]) : A(0);
    return Lanes<A>::load(wide);
  }
  static ROI_INLINE void store_some(S* to, const Lanes<A>& lanes, int count) {
    A wide[kLanes<A>];
    lanes.store(wide);
    for (int i = 0; i < count; ++i) narrow(wide[i], to[i]);
  }
};

#if defined(__AVX512F__) && defined(__AVX512BW__)
ROI_INLINE FloatVec vec(__m512 x) { return reinterpret_cast<FloatVec>(x); }
template <>
ROI_INLINE Lanes<float> Storage<BFloat>::load(const BFloat* from) {
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  return {{vec(_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16)))}};
}
template <>
ROI_INLINE void Storage<BFloat>::store(BFloat* to, const Lanes<float>& lanes) {
  const auto x = reinterpret_cast<__m512>(lanes.v[0]);
  const __m512i bits = _mm512_castps_si512(x), high = _mm512_srli_epi32(bits, 16);
  const __m512i odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
  __m512i r = _mm512_srli_epi32(_mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd), 16);
  r = _mm512_mask_or_epi32(r, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), high, _mm512_set1_epi32(0x40));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi32_epi16(r));
}
template <>
ROI_INLINE Lanes<float> Storage<BFloat>::narrowed(const float* from) {
  auto rounded = [](const float* at) {  // in the upper halves
    const __m512 x = _mm512_loadu_ps(at);
    const __m512i bits = _mm512_castps_si512(x),
                  odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i r = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
    return _mm512_mask_or_epi32(r, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), bits, _mm512_set1_epi32(0x400000));
  };
  const __m512i first = _mm512_srli_epi32(rounded(from), 16), second = rounded(from + 16);
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

// Writes around the cache; `to` and `from` are 32-byte aligned and lie alike within their cache lines, `bytes` is a
// multiple of 32.
ROI_INLINE void stream(char* to, const char* from, int64_t bytes) {
#if defined(__AVX2__)
  auto half_line = [&](int64_t i) {
    _mm256_stream_si256(reinterpret_cast<__m256i*>(to + i),
                        _mm256_load_si256(reinterpret_cast<const __m256i*>(from + i)));
  };
  int64_t i = 0;
#if defined(__AVX512F__)
  if (reinterpret_cast<uintptr_t>(to) % 64 && bytes) half_line(0), i = 32;
  for (; i + 64 <= bytes; i += 64) _mm512_stream_si512(reinterpret_cast<__m512i*>(to + i), _mm512_load_si512(from + i));
#endif
  for (; i < bytes; i += 32) half_line(i);
#elif defined(__SSE2__)
  for (int64_t i = 0; i < bytes; i += 16)
    _mm_stream_si128(reinterpret_cast<__m128i*>(to + i), _mm_load_si128(reinterpret_cast<const __m128i*>(from + i)));
#else
  __builtin_memcpy(to, from, static_cast<size_t>(bytes));
#endif
}

static inline void finish_stores() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

}  // namespace roialign::ROI_SET
