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
#elif defined(__AVX2__)
// The perfect shuffles cross 128-bit lanes, which takes twice as many instructions.
template <>
ROI_INLINE void transpose_square(FloatVec* rows) {
  __m256 r[8], t[8];
  for (int i = 0; i < 4; ++i) {
    const auto a = reinterpret_cast<__m256>(rows[2 * i]), b = reinterpret_cast<__m256>(rows[2 * i + 1]);
    t[2 * i] = _mm256_unpacklo_ps(a, b);
    t[2 * i + 1] = _mm256_unpackhi_ps(a, b);
  }
  auto low = [](__m256 a, __m256 b) {
    return _mm256_castpd_ps(_mm256_unpacklo_pd(_mm256_castps_pd(a), _mm256_castps_pd(b)));
  };
  auto high = [](__m256 a, __m256 b) {
    return _mm256_castpd_ps(_mm256_unpackhi_pd(_mm256_castps_pd(a), _mm256_castps_pd(b)));
  };
  for (int q = 0; q < 8; q += 4) {  // now r[q + j] holds, in 128-bit lane l, column 4 l + j of rows q .. q + 3
    r[q] = low(t[q], t[q + 2]);
    r[q + 1] = high(t[q], t[q + 2]);
    r[q + 2] = low(t[q + 1], t[q + 3]);
    r[q + 3] = high(t[q + 1], t[q + 3]);
  }
  for (int j = 0; j < 4; ++j) {
    rows[j] = reinterpret_cast<FloatVec>(_mm256_permute2f128_ps(r[j], r[4 + j], 0x20));
    rows[4 + j] = reinterpret_cast<FloatVec>(_mm256_permute2f128_ps(r[j], r[4 + j], 0x31));
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
