// What a random call wrote, and whether another machine wrote the same.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <vector>

#include "core.h"
#include "loop.h"

namespace roialign {

using Bytes = std::vector<char>;

// One tensor that a call wrote.
struct Answer {
  DType dtype;
  Bytes bytes;
  bool in_double;  // summed
  bool cancels;    // it sums numbers of both signs
  bool jumps;      // the last bit of a sample may decide where a number goes
  bool operator==(const Answer& other) const { return bytes == other.bytes; }
};
using Answers = std::vector<Answer>;

// Whether two machines' numbers differ by no more than the order of operations and fused ones explain: a rounding of
// the stored type, and of the accumulator one for each of some hundred terms, all measured by the tensor's largest
// number.
inline bool agree(const Answer& a, const Bytes& b) {
  const int64_t bytes_each = kDTypes[static_cast<int>(a.dtype)].bytes;
  const auto count = static_cast<int64_t>(a.bytes.size()) / bytes_each;
  const double stored[] = {0x1p-23, 0x1p-52, 0x1p-10, 0x1p-7};  // by DType
  const double summed = (a.cancels ? 4096 : 128) * (a.in_double ? 0x1p-53 : 0x1p-24);
  double largest = 0;
  auto value = [&](const Bytes& bytes, int64_t i) { return loop::number(bytes.data() + i * bytes_each, a.dtype); };
  for (int64_t i = 0; i < count; ++i)
    if (std::isfinite(value(a.bytes, i))) largest = std::max(largest, std::abs(value(a.bytes, i)));
  for (int64_t i = 0; i < count; ++i) {
    const double x = value(a.bytes, i), y = value(b, i);
    if (x == y || (std::isnan(x) && std::isnan(y))) continue;
    if (!(std::abs(x - y) <= (stored[static_cast<int>(a.dtype)] + summed) * largest + 0x1p-24))
      return std::fprintf(stderr, "%.17g here, %.17g there; the largest %g\n", x, y, largest), false;
  }
  return true;
}

}  // namespace roialign
