// Maxima in a volume, bin by bin over planes: what the slices come to at the depth of one sample, or each of a bin's
// slices.
#pragma once

#include "kernels/rows-inl.h"
#include "kernels/slices-inl.h"
#include "kernels/winners-inl.h"

namespace roialign::ROI_SET {

// What the slices come to at the depth of sample iz: outside the volume, 0. Cells of weight 0 count nothing.
template <class S, class A>
static View<A> plane_at(const KernelArgs& args, Slices<S, A>& slices, int32_t iz) {
  constexpr int n = kLanes<A>;
  const Box<A>& box = slices.box;
  const Matrix<A>& samples = box.z->bins;
  auto* plane = reinterpret_cast<A*>(args.space.plane);
  const int64_t width = box.x.touched;
  View<A> views[2];
  A weight[2];
  int taps = 0;
  for (int32_t t = samples.begin[iz]; t < samples.begin[iz + 1]; ++t) {
    if (samples.weight[t] == 0) continue;
    views[taps] = slices.at(samples.index[t]);
    weight[taps++] = samples.weight[t];
  }
  for (int32_t i = 0; i < box.y.touched; ++i)
    for (int32_t k = 0; k < box.x.runs; ++k) {
      const Run& run = box.x.run[k];
      A* to = plane + (i * width + run.at) * n;
      const A* row[2];
      for (int t = 0; t < taps; ++t) row[t] = views[t].at(box, i, run.at);
      if (taps == 0) __builtin_memset(to, 0, static_cast<size_t>(run.count * kBlockBytes));
      if (taps == 1) sum_rows_fixed<A, 1>(row, weight, views[0].pixel, run.count, to);
      if (taps == 2) sum_rows_fixed<A, 2>(row, weight, views[0].pixel, run.count, to);
    }
  return {plane, width * n, n, true};
}

// Calls visit(view, place) for the planes of samples, or the slices, among which bin p takes its maximum.
template <class S, class A, class Visit>
static ROI_INLINE void for_each_plane(const KernelArgs& args, Slices<S, A>& slices, int32_t p, Visit&& visit) {
  const Axis<A>& z = *slices.box.z;
  if (args.kind == Kind::max)
    for (int32_t iz = z.group[p]; iz < z.group[p + 1]; ++iz) visit(plane_at(args, slices, iz), iz);
  else
    for (int32_t t = z.bins.begin[p]; t < z.bins.begin[p + 1]; ++t) visit(slices.at(z.bins.index[t]), z.bins.index[t]);
}

template <class S, class A>
static void max_bins(const KernelArgs& args, Slices<S, A>& slices, const Bins& bins, A* tile) {
  constexpr int n = kLanes<A>;
  const int64_t values = int64_t{bins.rows} * args.pooled.width * n;
  auto* slice = reinterpret_cast<A*>(args.space.slice);
  for (int32_t p = 0; p < bins.depth; ++p, tile += values) {
    bool any = false;
    for_each_plane(args, slices, bins.z + p, [&](const View<A>& view, int32_t) {
      A* to = any ? slice : tile;
      args.kind == Kind::max ? max_rows(args, view, slices.box, bins.row, bins.rows, to)
                             : cell_rows(args, view, slices.box, bins.row, bins.rows, to);
      for (int64_t i = 0; any && i < values; i += n) {
        Lanes<A> best = Lanes<A>::load(tile + i);
        best.raise(Lanes<A>::load(slice + i));
        best.store(tile + i);
      }
      any = true;
    });
    if (!any) __builtin_memset(tile, 0, static_cast<size_t>(values) * sizeof(A));
  }
}

// Finds the first greatest sample or cell of each bin of pooled slice p; NaN wins. One Place for each, z: -1 if empty.
template <class S, class A>
static const Place* find_places(const KernelArgs& args, Slices<S, A>& slices, int32_t p, int32_t row, int32_t rows,
                                bool careful) {
  constexpr int n = kLanes<A>;
  const int32_t width = args.pooled.width;
  auto* best = reinterpret_cast<A*>(args.space.slice);
  const auto* challenger = reinterpret_cast<const A*>(args.space.best);
  auto* places = reinterpret_cast<Place*>(args.space.places);
  for (int64_t i = 0; i < int64_t{rows} * width; ++i)
    for (int c = 0; c < n; ++c) places[i].z[c] = -1;
  for_each_plane(args, slices, p, [&](const View<A>& view, int32_t at) {
    for (int32_t r = 0; r < rows; ++r)
      find_winners(args, view, slices.box, row + r, careful, [&](int32_t q, const Winners& winners) {
        Place& place = places[int64_t{r} * width + q];
        A* greatest = best + (int64_t{r} * width + q) * n;
        const A* value = challenger + q * n;
        for (int c = 0; c < n; ++c) {
          const bool wins = (winners.y[c] >= 0) & ((place.z[c] < 0) | (value[c] > greatest[c]) |
                                                   ((value[c] != value[c]) & (greatest[c] == greatest[c])));
          greatest[c] = wins ? value[c] : greatest[c];
          place.z[c] = wins ? at : place.z[c];
          place.y[c] = wins ? winners.y[c] : place.y[c];
          place.x[c] = wins ? winners.x[c] : place.x[c];
        }
      });
  });
  return places;
}

// The cells of one place: those of its sample, or itself. visit(position, weight, tap) along one axis.
template <class A, class Visit>
static ROI_INLINE void for_each_tap(Kind kind, const Axis<A>& axis, int32_t place, Visit&& visit) {
  if (kind == Kind::cells) return visit(place, A(1), 0);
  for (int32_t t = axis.bins.begin[place]; t < axis.bins.begin[place + 1]; ++t)
    visit(axis.bins.index[t], axis.bins.weight[t], t);
}

// Scatters the gradient to the places. sum(z) is where that of slice z of the volume lies, if it is this piece's.
template <class S, class A>
static void max_bins_back(const KernelArgs& args, Slices<S, A>& slices, const Bins& bins, const A* tile,
                          const Piece& piece, A* base) {
  constexpr int n = kLanes<A>;
  const Box<A>& box = slices.box;
  const int64_t pixels = int64_t{bins.rows} * args.pooled.width, height = piece.grad.height, width = piece.grad.width;
  for (int32_t p = 0; p < bins.depth; ++p) {
    const Place* places = find_places(args, slices, bins.z + p, bins.row, bins.rows, false);
    for (int64_t i = 0; i < pixels; ++i)
      for (int c = 0; c < slices.lanes; ++c) {
        const Place& place = places[i];
        if (place.z[c] < 0) continue;
        const A grad = tile[(p * pixels + i) * n + c];
        for_each_tap(args.kind, *box.z, place.z[c], [&](int32_t z, A wz, int32_t) {
          const int64_t slice = box.z->cell[z];
          if (slice < piece.row || slice >= piece.row_end) return;
          for_each_tap(args.kind, box.y, place.y[c], [&](int32_t y, A wy, int32_t) {
            A* row = base + ((slice - piece.row) * height + box.y.cell[y]) * width * n + c;
            for_each_tap(args.kind, box.x, place.x[c],
                         [&](int32_t x, A wx, int32_t) { row[box.x.cell[x] * n] += wz * wy * wx * grad; });
          });
        });
      }
  }
}

template <class S, class A>
static void max_bins_box_grad(const KernelArgs& args, Slices<S, A>& slices, const Bins& bins, const A* tile,
                              bool careful, BoxGrad& result) {
  constexpr int n = kLanes<A>;
  const Box<A>& box = slices.box;
  const Axis<A>&az = *box.z, &ay = box.y, &ax = box.x;
  const Map& volume = slices.piece.input;
  const int64_t pixels = int64_t{bins.rows} * args.pooled.width;
  for (int32_t p = 0; p < bins.depth; ++p) {
    const Place* places = find_places(args, slices, bins.z + p, bins.row, bins.rows, careful);
    for (int64_t i = 0; i < pixels; ++i)
      for (int c = 0; c < slices.lanes; ++c) {
        const Place& place = places[i];
        if (place.z[c] < 0) continue;
        BoxGrad part{};
        const S* channel = reinterpret_cast<const S*>(volume.data) + (slices.channel + c) * volume.channel_stride;
        for_each_tap(args.kind, az, place.z[c], [&](int32_t z, A wz, int32_t tz) {
          for_each_tap(args.kind, ay, place.y[c], [&](int32_t y, A wy, int32_t ty) {
            for_each_tap(args.kind, ax, place.x[c], [&](int32_t x, A wx, int32_t tx) {
              const S* cell = channel + az.cell[z] * volume.slice_stride + ay.cell[y] * volume.row_stride +
                              ax.cell[x] * volume.pixel_stride;
              auto value = static_cast<double>(widen(*cell));
              if (careful && value - value != 0) value = 0;  // a cell that is not finite has no slope
              part.z1 += static_cast<double>(az.dlo[tz] * wy * wx) * value;
              part.z2 += static_cast<double>(az.dhi[tz] * wy * wx) * value;
              part.y1 += static_cast<double>(wz * ay.dlo[ty] * wx) * value;
              part.y2 += static_cast<double>(wz * ay.dhi[ty] * wx) * value;
              part.x1 += static_cast<double>(wz * wy * ax.dlo[tx]) * value;
              part.x2 += static_cast<double>(wz * wy * ax.dhi[tx]) * value;
            });
          });
        });
        result.add_times(static_cast<double>(tile[(p * pixels + i) * n + c]), part);
      }
  }
}

}  // namespace roialign::ROI_SET
