// The taps of one box where each bin has cells of its own, as they are found: bin by bin, sample by sample.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <utility>
#include <vector>

#include "tables.h"

namespace roialign {

using Rates = std::array<double, 6>;  // of which a form uses rates_of
// Taps of one box, bin by bin.
class Collector {
 public:
  std::vector<int32_t> begin;
  std::vector<Cell> cell;
  std::vector<double> weight, rate;
  size_t rates = 0;  // of each tap

  void start(int rates_, double least) {
    rates = static_cast<size_t>(rates_);
    least_ = least;
    begin.assign(1, 0);
    cell.clear();
    weight.clear();
    rate.clear();
  }
  // A cell of weight zero counts nothing, whatever it holds, so it has no tap, unless its weight has a slope.
  void add(Cell at, double w, const double* r) {
    if (!(w > least_) && std::all_of(r, r + rates, [](double each) { return each == 0; })) return;
    if (cell.size() >= static_cast<size_t>(std::numeric_limits<int32_t>::max()))
      throw std::length_error("roialign: the bins of a box touch more than 2^31 cells of the map");
    cell.push_back(at);
    weight.push_back(w);
    if (rates) rate.insert(rate.end(), r, r + rates);
  }
  void end_bin() { begin.push_back(static_cast<int32_t>(cell.size())); }

 private:
  double least_ = 0;  // weights up to this one are 0 in the kernels' type
};

// The samples of one bin: of their corners those at the same cell become one tap.
class Merger {
 public:
  // One sample: the first of its cells, the fraction towards the next ones, and how that follows the box.
  struct Sample {
    Cell at;
    double y, x;
  };
  struct Motion {
    Rates y, x;
  };

  void add(const Sample& sample) {
    samples_.push_back(sample);
    least_ = {std::min(least_.y, sample.at.y), std::min(least_.x, sample.at.x)};
    most_ = {std::max(most_.y, sample.at.y), std::max(most_.x, sample.at.x)};
  }
  void add(const Sample& sample, const Motion& motion) {
    add(sample);
    motions_.push_back(motion);
  }
  // Each sample has this share of the bin.
  void finish(double share, Collector& taps) {
    const int64_t height = int64_t{most_.y} - least_.y + 2, width = int64_t{most_.x} - least_.x + 2;
    if (samples_.empty()) return;
    if (static_cast<double>(height) * static_cast<double>(width) <= 64 + 8 * static_cast<double>(samples_.size()))
      finish_window(height, width, share, taps);
    else
      finish_list(share, taps);
    samples_.clear();
    motions_.clear();
    least_ = {std::numeric_limits<int32_t>::max(), std::numeric_limits<int32_t>::max()};
    most_ = {0, 0};
  }

 private:
  struct Corner {
    Cell at;
    double weight;
    Rates rates;
  };

  // Adds the corners up in a window of all cells from the first to the last one. Beyond the last cell of the map a
  // corner weighs nothing, and has no slope.
  void finish_window(int64_t height, int64_t width, double share, Collector& taps) {
    const size_t stride = 1 + taps.rates, line = static_cast<size_t>(width) * stride;  // a weight and its rates
    sums_.assign(static_cast<size_t>(height) * line, 0);
    for (size_t i = 0; i < samples_.size(); ++i) {
      const Sample& sample = samples_[i];
      double* row = sums_.data() + static_cast<size_t>(sample.at.y - least_.y) * line +
                    static_cast<size_t>(sample.at.x - least_.x) * stride;
      const double y[] = {share - share * sample.y, share * sample.y}, x[] = {1 - sample.x, sample.x};
      for (size_t j = 0; j < 2; ++j, row += line)
        for (size_t k = 0; k < 2; ++k) {
          row[k * stride] += y[j] * x[k];
          for (size_t r = 0; r < taps.rates; ++r) row[k * stride + 1 + r] += rate(i, j, k, r, share);
        }
    }
    const double* sum = sums_.data();
    for (int32_t y = 0; y < height; ++y)
      for (int32_t x = 0; x < width; ++x, sum += stride) taps.add({least_.y + y, least_.x + x}, *sum, sum + 1);
  }
  // A long thin bin across the map touches few of the cells around it.
  void finish_list(double share, Collector& taps) {
    corners_.clear();
    for (size_t i = 0; i < samples_.size(); ++i)
      for (size_t j = 0; j < 2; ++j)
        for (size_t k = 0; k < 2; ++k) {
          const Sample& sample = samples_[i];
          const double y = j ? sample.y : 1 - sample.y, x = k ? sample.x : 1 - sample.x;
          corners_.push_back(
              {{sample.at.y + static_cast<int32_t>(j), sample.at.x + static_cast<int32_t>(k)}, share * y * x, {}});
          for (size_t r = 0; r < taps.rates; ++r) corners_.back().rates[r] = rate(i, j, k, r, share);
        }
    auto place = [](const Corner& corner) { return std::pair(corner.at.y, corner.at.x); };
    std::stable_sort(corners_.begin(), corners_.end(),
                     [&](const Corner& a, const Corner& b) { return place(a) < place(b); });
    for (size_t i = 0; i < corners_.size();) {
      Corner sum = corners_[i];
      for (++i; i < corners_.size() && place(corners_[i]) == place(sum); ++i) {
        sum.weight += corners_[i].weight;
        for (size_t r = 0; r < taps.rates; ++r) sum.rates[r] += corners_[i].rates[r];
      }
      taps.add(sum.at, sum.weight, sum.rates.data());
    }
  }
  // Derivative r of the weight of corner (j, k) of sample i.
  double rate(size_t i, size_t j, size_t k, size_t r, double share) const {
    const Sample& sample = samples_[i];
    const Motion& motion = motions_[i];
    const double y = j ? sample.y : 1 - sample.y, x = k ? sample.x : 1 - sample.x;
    return share * ((k ? motion.x[r] : -motion.x[r]) * y + (j ? motion.y[r] : -motion.y[r]) * x);
  }

  Cell least_{std::numeric_limits<int32_t>::max(), std::numeric_limits<int32_t>::max()}, most_{0, 0};
  std::vector<Sample> samples_;
  std::vector<Motion> motions_;  // of each sample, where rates are wanted
  std::vector<double> sums_;
  std::vector<Corner> corners_;
};

}  // namespace roialign
