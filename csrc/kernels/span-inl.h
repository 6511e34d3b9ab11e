// As many neighbouring cells of one row of a plane as a bin's columns are, and what one bin comes to.
#pragma once

#include "kernels/lanes-inl.h"

namespace roialign::ROI_SET {

constexpr int kFloatSpanBytes = kVectorBytes < 32 ? kVectorBytes : 32;
typedef float SpanFloat __attribute__((vector_size(kFloatSpanBytes)));
typedef float SpanFloatAny __attribute__((vector_size(kFloatSpanBytes), aligned(4), may_alias));

template <class A>
struct SpanVector {
  using Type = DoubleVec;
  using Any = DoubleVecAny;
};
template <>
struct SpanVector<float> {
  using Type = SpanFloat;
  using Any = SpanFloatAny;
};

template <class A>
struct Span {
  using Vec = typename SpanVector<A>::Type;
  using Any = typename SpanVector<A>::Any;
  static constexpr int width = static_cast<int>(sizeof(Vec) / sizeof(A)), parts = kBinColumns / width;
  Vec v[parts];

  static ROI_INLINE Span load(const A* from) {
    Span r;
    for (int i = 0; i < parts; ++i) r.v[i] = *reinterpret_cast<const Any*>(from + i * width);
    return r;
  }
  static ROI_INLINE Span fill(A value) {
    Span r;
    for (int i = 0; i < parts; ++i) r.v[i] = value - Vec{};
    return r;
  }
  ROI_INLINE void store(A* to) const {
    for (int i = 0; i < parts; ++i) *reinterpret_cast<Any*>(to + i * width) = v[i];
  }
  ROI_INLINE Span times(A w) const {
    Span r;
    for (int i = 0; i < parts; ++i) r.v[i] = v[i] * w;
    return r;
  }
  ROI_INLINE void add_times(A w, const Span& x) {
    for (int i = 0; i < parts; ++i) v[i] += w * x.v[i];
  }
  // to += w * this
  ROI_INLINE void add_to(A w, A* to) const {
    Span sum = load(to);
    sum.add_times(w, *this);
    sum.store(to);
  }
  // The products with weights; 0 where the weight is, whatever is there.
  ROI_INLINE Span weighted(const Span& w) const {
    Span r;
    for (int i = 0; i < parts; ++i) r.v[i] = w.v[i] != 0 ? v[i] * w.v[i] : Vec{};
    return r;
  }
  ROI_INLINE void add_weighted(const Span& x, const Span& w) {
    for (int i = 0; i < parts; ++i) v[i] = w.v[i] != 0 ? v[i] + x.v[i] * w.v[i] : v[i];
  }
  ROI_INLINE Vec folded() const {
    Vec r = v[0];
    for (int i = 1; i < parts; ++i) r += v[i];
    return r;
  }
};

// Sums of neighbours: those of a, then those of b; of eight floats, the lower halves of both first.
template <class V>
ROI_INLINE V pair_sums(V a, V b) {
  constexpr int n = sizeof(V) / sizeof(a[0]);
  if constexpr (n == 2) return __builtin_shufflevector(a, b, 0, 2) + __builtin_shufflevector(a, b, 1, 3);
  if constexpr (n == 4) return __builtin_shufflevector(a, b, 0, 2, 4, 6) + __builtin_shufflevector(a, b, 1, 3, 5, 7);
  if constexpr (n == 8 && sizeof(V) == 32)
    return __builtin_shufflevector(a, b, 0, 2, 8, 10, 4, 6, 12, 14) +
           __builtin_shufflevector(a, b, 1, 3, 9, 11, 5, 7, 13, 15);
  if constexpr (n == 8 && sizeof(V) == 64)
    return __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14) +
           __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15);
}

// to[i] = the sum of the span at from + i * kBinColumns, for kBinColumns of them.
template <class A>
static ROI_INLINE void sum_spans(const A* from, A* to) {
  using S = Span<A>;
  constexpr int w = S::width;
  for (int first = 0; first < kBinColumns; first += w) {
    typename S::Vec r[w];
    for (int i = 0; i < w; ++i) r[i] = S::load(from + (first + i) * kBinColumns).folded();
    int count = w;
    if constexpr (sizeof(A) == 4 && w == 8) {
      for (; count > 2; count /= 2)
        for (int i = 0; i < count / 2; ++i) r[i] = pair_sums(r[2 * i], r[2 * i + 1]);
      r[0] = __builtin_shufflevector(r[0], r[1], 0, 1, 2, 3, 8, 9, 10, 11) +
             __builtin_shufflevector(r[0], r[1], 4, 5, 6, 7, 12, 13, 14, 15);
    } else {
      for (; count > 1; count /= 2)
        for (int i = 0; i < count / 2; ++i) r[i] = pair_sums(r[2 * i], r[2 * i + 1]);
    }
    *reinterpret_cast<typename S::Any*>(to + first) = r[0];
  }
}

// The sum of a span each of whose columns is there for all lanes, in the same order.
template <class A>
static ROI_INLINE Lanes<A> sum_columns(Lanes<A>* columns) {
  constexpr int w = Span<A>::width;
  for (int i = w; i < kBinColumns; ++i) columns[i % w].add_times(1, columns[i]);
  for (int count = w; count > 1; count /= 2)
    for (int i = 0; i < count / 2; ++i) {
      columns[i] = columns[2 * i];
      columns[i].add_times(1, columns[2 * i + 1]);
    }
  return columns[0];
}

}  // namespace roialign::ROI_SET
