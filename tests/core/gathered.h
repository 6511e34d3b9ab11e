// Rotated boxes and moved bins once more, sample by sample in double, as the formulas say and as slowly. Derivatives
// with respect to a number of a box come from dual numbers that go through the same formulas.
#pragma once

#include <cmath>
#include <cstdio>
#include <limits>
#include <numbers>
#include <random>
#include <vector>

#include "core.h"

namespace gathered {

using namespace roialign;

// A number and its derivative.
struct Dual {
  double value = 0, slope = 0;
  Dual(double v = 0, double s = 0) : value(v), slope(s) {}
};
inline Dual operator+(Dual a, Dual b) { return {a.value + b.value, a.slope + b.slope}; }
inline Dual operator-(Dual a, Dual b) { return {a.value - b.value, a.slope - b.slope}; }
inline Dual operator*(Dual a, Dual b) { return {a.value * b.value, a.slope * b.value + a.value * b.slope}; }
inline Dual operator/(Dual a, double b) { return {a.value / b, a.slope / b}; }

// Visits each cell that a sample at (y, x) reads, with its weight.
template <class Visit>
void interpolate(Dual y, Dual x, int64_t height, int64_t width, Visit&& visit) {
  if (!(y.value >= -1 && y.value <= static_cast<double>(height))) return;
  if (!(x.value >= -1 && x.value <= static_cast<double>(width))) return;
  struct Side {
    int64_t cell;
    Dual weight;
  };
  auto sides = [](Dual at, int64_t length) -> std::vector<Side> {
    if (at.value < 0) return {{0, 1}};
    if (at.value >= static_cast<double>(length - 1)) return {{length - 1, 1}};
    const double cell = std::floor(at.value);
    return {{static_cast<int64_t>(cell), Dual(cell + 1) - at}, {static_cast<int64_t>(cell) + 1, at - Dual(cell)}};
  };
  for (const Side& row : sides(y, height))
    for (const Side& column : sides(x, width)) visit(row.cell, column.cell, row.weight * column.weight);
}

// Visits each cell that each sample of bin (p, q) reads, with the weight that it has in the bin.
template <class Visit>
void for_each_read(const Call& call, const Level& level, const std::vector<Dual>& row, int32_t p, int32_t q,
                   Visit&& visit) {
  const bool rotated = call.kind == Kind::rotated;
  const double shift = rotated && !call.aligned ? 0 : 0.5;
  auto size_of = [&](Dual size) { return rotated && !call.aligned && !(size.value > 1) ? Dual(1) : size; };
  auto grid_of = [&](Dual bin) {
    return call.sampling_ratio > 0 ? static_cast<double>(call.sampling_ratio) : std::ceil(bin.value);
  };
  const Dual x = row[1] * Dual(level.scale_x) - Dual(shift), y = row[2] * Dual(level.scale_y) - Dual(shift);
  const Dual width = size_of(rotated ? row[3] * Dual(level.scale_x) : (row[3] * Dual(level.scale_x) - Dual(shift)) - x);
  const Dual height =
      size_of(rotated ? row[4] * Dual(level.scale_y) : (row[4] * Dual(level.scale_y) - Dual(shift)) - y);
  const Dual bin_w = width / call.pooled_w, bin_h = height / call.pooled_h;
  const double grid_w = grid_of(bin_w), grid_h = grid_of(bin_h);
  const size_t bins = static_cast<size_t>(call.bins()), b = static_cast<size_t>(p * call.pooled_w + q);
  for (double i = 0; i < grid_h; ++i)
    for (double j = 0; j < grid_w; ++j) {
      Dual at_y, at_x;
      if (rotated) {
        const Dual down = (Dual(0) - height / 2) + Dual(p) * bin_h + Dual(i + 0.5) * bin_h / grid_h;
        const Dual right = (Dual(0) - width / 2) + Dual(q) * bin_w + Dual(j + 0.5) * bin_w / grid_w;
        const Dual sine(std::sin(row[5].value), std::cos(row[5].value) * row[5].slope);
        const Dual cosine(std::cos(row[5].value), -std::sin(row[5].value) * row[5].slope);
        at_y = down * cosine - right * sine + y;
        at_x = down * sine + right * cosine + x;
      } else {
        at_y = (y + Dual(p) * bin_h + height * row[5 + bins + b]) + Dual(i + 0.5) * bin_h / grid_h;
        at_x = (x + Dual(q) * bin_w + width * row[5 + b]) + Dual(j + 0.5) * bin_w / grid_w;
      }
      interpolate(at_y, at_x, level.height, level.width, [&](int64_t cell_y, int64_t cell_x, Dual weight) {
        visit(cell_y, cell_x, weight / (grid_h * grid_w));
      });
    }
}

inline double& cell(const Level& level, int64_t n, int64_t c, int64_t y, int64_t x) {
  return reinterpret_cast<double*>(
      level.data)[n * level.stride[0] + c * level.stride[1] + y * level.stride[3] + x * level.stride[4]];
}

// Whether two answers agree; `size` is that of the numbers they were summed from.
inline bool agree(double got, double expected, double size) {
  if (got == expected || (got != got && expected != expected)) return true;
  return std::abs(got - expected) <= 1e-11 * (1 + size);
}

// A float64 map of [2, channels, h, w] numbers between -1 and 1, contiguous or channels_last; now and then infinite.
struct Map {
  std::vector<double> values;
  Level level;

  template <class Random>
  Map(Random& random, int64_t channels, int64_t h, int64_t w, double infinite) {
    values.resize(static_cast<size_t>(2 * channels * h * w));
    for (double& value : values) {
      value = static_cast<double>(random.between(-1000, 1000)) / 1000;
      if (infinite > 0 && random.chance(infinite)) value = random.chance(0.5) ? INFINITY : -INFINITY;
    }
    level.data = reinterpret_cast<char*>(values.data());
    level.images = 2, level.channels = channels, level.height = h, level.width = w;
    const bool last = random.chance(0.5);
    level.stride[0] = channels * h * w;
    level.stride[1] = last ? 1 : h * w;
    level.stride[3] = w * (last ? channels : 1);
    level.stride[4] = last ? channels : 1;
    level.scale_y = random.pick({1.0, 0.5, 0.25});
    level.scale_x = random.pick({1.0, 0.5, 0.3});
  }
};

template <class Random>
std::vector<double> make_rois(Random& random, const Call& call, const Level& level) {
  std::vector<double> rois;
  const double size[] = {static_cast<double>(level.width) / level.scale_x,
                         static_cast<double>(level.height) / level.scale_y};
  for (int64_t k = 0; k < call.boxes; ++k)
    for (int64_t c = 0; c < call.columns(); ++c) {
      double value = random.near(size[(c + 1) % 2]);
      if (c > 2 && random.chance(0.05)) value = random.pick({0.0, 1.0, 1e-3, 1e4, -1e4});
      if (c == 5 && call.kind == Kind::rotated)
        value = random.chance(0.3) ? std::numbers::pi / 4 * static_cast<double>(random.between(-9, 9)) : random.near(4);
      if (c >= 5 && call.kind == Kind::moved) value = random.near(0.3);
      if (random.chance(0.2)) value = std::floor(value * 2) / 2;
      if (random.chance(0.001)) value = random.pick({static_cast<double>(NAN), HUGE_VAL, -HUGE_VAL});
      rois.push_back(c ? value : static_cast<double>(random.between(0, 1)));
    }
  return rois;
}

// What is computed once more here, of one call.
struct Expected {
  std::vector<double> pooled, map_grad, box_grad;

  Expected(const Call& call, const std::vector<double>& rois, const std::vector<double>& grad, const Level& zeros) {
    const Level& level = call.levels[0];
    const int64_t channels = level.channels, columns = call.columns(), bins = call.bins();
    pooled.assign(grad.size(), 0);
    box_grad.assign(rois.size(), 0);
    map_grad.assign(static_cast<size_t>(zeros.stride[0] * zeros.images), 0);
    Level target = zeros;
    target.data = reinterpret_cast<char*>(map_grad.data());
    for (int64_t k = 0; k < call.boxes; ++k) {
      const auto from = rois.begin() + k * columns;
      std::vector<Dual> row(from, from + columns);
      bool finite = true;
      for (const Dual& number : row) finite &= std::isfinite(number.value);
      const auto image = static_cast<int64_t>(row[0].value);
      auto at = [&](int64_t c, int32_t p, int32_t q) {
        return static_cast<size_t>((k * channels + c) * bins + p * call.pooled_w + q);
      };
      for (int32_t p = 0; p < call.pooled_h; ++p)
        for (int32_t q = 0; q < call.pooled_w; ++q) {
          if (!finite) {
            for (int64_t c = 0; c < channels; ++c) pooled[at(c, p, q)] = NAN;
            continue;
          }
          for_each_read(call, level, row, p, q, [&](int64_t y, int64_t x, Dual weight) {
            for (int64_t c = 0; c < channels && weight.value > 0; ++c) {
              pooled[at(c, p, q)] += weight.value * cell(level, image, c, y, x);
              cell(target, image, c, y, x) += weight.value * grad[at(c, p, q)];
            }
          });
          for (int64_t column = 1; column < columns; ++column) {
            row[static_cast<size_t>(column)].slope = 1;
            for_each_read(call, level, row, p, q, [&](int64_t y, int64_t x, Dual weight) {
              for (int64_t c = 0; c < channels; ++c) {
                const double value = cell(level, image, c, y, x);
                if (std::isfinite(value))
                  box_grad[static_cast<size_t>(k * columns + column)] += weight.slope * value * grad[at(c, p, q)];
              }
            });
            row[static_cast<size_t>(column)].slope = 0;
          }
        }
    }
  }
};

// One random call whose answers are computed here too. False, and said so, if they differ.
template <class Random>
bool one_case(Random& random) {
  Call call;
  call.kind = random.pick({Kind::rotated, Kind::moved});
  call.dtype = DType::float64;
  call.rois_f64 = true;
  call.pooled_h = static_cast<int32_t>(random.between(1, 4));
  call.pooled_w = static_cast<int32_t>(random.between(1, 4));
  call.aligned = call.kind == Kind::moved || random.chance(0.5);
  call.sampling_ratio = random.between(0, 3);
  call.boxes = random.between(0, 4);
  const int64_t channels = random.between(1, 17), h = random.between(1, 16), w = random.between(1, 16);
  Map map(random, channels, h, w, random.chance(0.1) ? 0.02 : 0), map_grad(random, channels, h, w, 0);
  call.levels = &map.level;
  call.level_count = 1;
  std::vector<double> rois = make_rois(random, call, map.level);
  std::vector<double> box_grad(rois.size()), grad(static_cast<size_t>(call.boxes * channels * call.bins()));
  for (double& value : grad) value = static_cast<double>(random.between(-1000, 1000)) / 1000;
  const Expected expected(call, rois, grad, map_grad.level);

  std::vector<double> pooled(grad.size());
  call.rois = rois.data();
  call.pooled = reinterpret_cast<char*>(pooled.data());
  forward(call);
  call.pooled = reinterpret_cast<char*>(grad.data());
  backward_input(call, &map_grad.level);
  backward_boxes(call, box_grad.data());
  auto all_agree = [](const char* what, const std::vector<double>& got, const std::vector<double>& want, double size) {
    for (size_t i = 0; i < got.size(); ++i)
      if (!agree(got[i], want[i], size))
        return std::fprintf(stderr, "%s[%zu]: got %.17g, expected %.17g\n", what, i, got[i], want[i]), false;
    return true;
  };
  // A derivative grows with the box, of which there are some of 10^4 pixels.
  return all_agree("pooled", pooled, expected.pooled, 1) &&
         all_agree("map's gradient", map_grad.values, expected.map_grad, 100) &&
         all_agree("boxes' gradient", box_grad, expected.box_grad, 1e5);
}

}  // namespace gathered
