// Between planes, one for each channel, and pixels of a channel block.
#include "kernels/edge-inl.h"

namespace roialign::ROI_SET {

// to[i] lane j = from[j] lane i, of one square of registers: all of a block's would not find room where they are
// narrow.
template <class A, class Load, class Store>
static ROI_INLINE void transpose_parts(Load&& load, Store&& store) {
  using L = Lanes<A>;
  for (int i = 0; i < kLanes<A>; i += L::width)
    for (int j = 0; j < kLanes<A>; j += L::width) {
      typename L::Vec r[L::width];
      for (int k = 0; k < L::width; ++k) r[k] = load(i + k, j);
      transpose_square(r);
      for (int k = 0; k < L::width; ++k) store(j + k, i, r[k]);
    }
}

// At least kLanes cells, square by square.
template <class S, class A>
static ROI_INLINE void pack_squares(const S* from, int64_t channel_stride, int lanes, int64_t count, A* to) {
  constexpr int n = kLanes<A>;
  Lanes<A> r[n];
  auto square = [&](int64_t i) {
    if constexpr (sizeof(S) == sizeof(A)) {
      using L = Lanes<A>;
      return transpose_parts<A>(
          [&](int c, int k) -> typename L::Vec {
            if (c >= lanes) return typename L::Vec{};
            return *reinterpret_cast<const typename L::Any*>(from + c * channel_stride + i + k);
          },
          [&](int k, int c, typename L::Vec v) { *reinterpret_cast<typename L::Any*>(to + (i + k) * n + c) = v; });
    }
    for (int c = 0; c < n; ++c) r[c] = c < lanes ? Storage<S>::load(from + c * channel_stride + i) : Lanes<A>::fill(0);
    transpose(r);
    for (int k = 0; k < n; ++k) r[k].store(to + (i + k) * n);
  };
  int64_t i = 0;
  for (; i + n <= count; i += n) square(i);
  // The rest: a few cells one by one, more of them as a full square that overlaps the last one.
  if (count - i > 3) return square(count - n);
  for (; i < count; ++i)
    for (int c = 0; c < n; ++c) to[i * n + c] = c < lanes ? widen(from[c * channel_stride + i]) : A(0);
}

template <class S, class A>
void pack_planes(const S* from, int64_t channel_stride, int lanes, int64_t count, A* to) {
  constexpr int n = kLanes<A>;
  if (count >= n)  // twice, so that a full block asks no lane whether it is there
    return lanes == n ? pack_squares(from, channel_stride, n, count, to)
                      : pack_squares(from, channel_stride, lanes, count, to);
  Lanes<A> r[n];
  int64_t i = 0;
  for (; i < count; i += n) {
    const int some = static_cast<int>(count - i < n ? count - i : n);
    for (int c = 0; c < n; ++c)
      r[c] = c < lanes ? Storage<S>::load_some(from + c * channel_stride + i, some) : Lanes<A>::fill(0);
    transpose(r);
    for (int k = 0; k < some; ++k) r[k].store(to + (i + k) * n);
  }
}

// The same back. Narrow types go in pairs: two pixels make one lane of the transpose.
template <class S, class A>
static ROI_INLINE void unpack_squares(const A* from, int lanes, int64_t count, S* to, int64_t channel_stride) {
  constexpr int n = kLanes<A>, pack = static_cast<int>(sizeof(A) / sizeof(S));
  Lanes<A> r[n];
  auto square = [&](int64_t i) {
    if constexpr (sizeof(S) == sizeof(A)) {
      using L = Lanes<A>;
      return transpose_parts<A>(
          [&](int k, int c) ->
          typename L::Vec { return *reinterpret_cast<const typename L::Any*>(from + (i + k) * n + c); },
          [&](int c, int k, typename L::Vec v) {
            if (c < lanes) *reinterpret_cast<typename L::Any*>(to + c * channel_stride + i + k) = v;
          });
    }
    for (int k = 0; k < n; ++k) r[k] = Storage<S>::narrowed(from + (i + k * pack) * n);
    transpose(r);
    for (int c = 0; c < lanes; ++c) __builtin_memcpy(to + c * channel_stride + i, &r[c], sizeof r[c]);
  };
  int64_t i = 0;
  for (; i + n * pack <= count; i += n * pack) square(i);
  if (count - i > 3) return square(count - n * pack);
  for (; i < count; ++i)
    for (int c = 0; c < lanes; ++c) narrow(from[i * n + c], to[c * channel_stride + i]);
}

template <class S, class A>
void unpack_planes(const A* from, int lanes, int64_t count, S* to, int64_t channel_stride) {
  constexpr int n = kLanes<A>, pack = static_cast<int>(sizeof(A) / sizeof(S));
  if (count >= n * pack)
    return lanes == n ? unpack_squares(from, n, count, to, channel_stride)
                      : unpack_squares(from, lanes, count, to, channel_stride);
  Lanes<A> r[n];
  int64_t i = 0;
  for (; i < count; i += n) {
    const int some = static_cast<int>(count - i < n ? count - i : n);
    for (int k = 0; k < n; ++k) r[k] = k < some ? Lanes<A>::load(from + (i + k) * n) : Lanes<A>::fill(0);
    transpose(r);
    for (int c = 0; c < lanes; ++c) Storage<S>::store_some(to + c * channel_stride + i, r[c], some);
  }
}

template void pack_planes(const float*, int64_t, int, int64_t, float*);
template void pack_planes(const double*, int64_t, int, int64_t, double*);
template void pack_planes(const Half*, int64_t, int, int64_t, float*);
template void pack_planes(const BFloat*, int64_t, int, int64_t, float*);
template void unpack_planes(const float*, int, int64_t, float*, int64_t);
template void unpack_planes(const double*, int, int64_t, double*, int64_t);
template void unpack_planes(const float*, int, int64_t, Half*, int64_t);
template void unpack_planes(const float*, int, int64_t, BFloat*, int64_t);

}  // namespace roialign::ROI_SET
