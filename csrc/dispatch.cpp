#include <cstring>
#include <iterator>

#include "kernels/kernels.h"

namespace roialign {
namespace {

struct Built {
  const KernelSet& kernels;
  bool (*has)();  // whether this machine can run them
};

#ifdef ROIALIGN_AVX2
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}
#endif
#ifdef ROIALIGN_AVX512
bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx2") &&
         __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}
#endif

const Built built[] = {
// The best first; a build of ROIALIGN_SETS leaves some out.
#ifdef ROIALIGN_AVX512
    {kernels_avx512, has_avx512},
#endif
#ifdef ROIALIGN_AVX2
    {kernels_avx2, has_avx2},
#endif
#ifdef ROIALIGN_BASELINE
    {kernels_baseline, [] { return true; }},
#endif
};

// Written once at import, read-only afterwards.
const KernelSet* chosen = &std::end(built)[-1].kernels;

}  // namespace

const KernelSet& kernels() { return *chosen; }

bool choose_kernels(const char* name) {
  for (const Built& each : built)
    if ((!*name || std::strcmp(name, each.kernels.name) == 0) && each.has()) return chosen = &each.kernels, true;
  return false;
}

}  // namespace roialign
