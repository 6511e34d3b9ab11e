#include <cstring>

#include "kernels/kernels.h"

namespace roialign {
namespace {

#ifdef ROIALIGN_X86
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}
bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif

// Written once at import, read-only afterwards.
const KernelSet* chosen = &kernels_baseline;

}  // namespace

const KernelSet& kernels() { return *chosen; }

bool choose_kernels(const char* name) {
  auto wanted = [name](const char* set) { return !*name || std::strcmp(name, set) == 0; };
#ifdef ROIALIGN_X86
  if (wanted("avx512") && has_avx512()) return chosen = &kernels_avx512, true;
  if (wanted("avx2") && has_avx2()) return chosen = &kernels_avx2, true;
#endif
  if (wanted("baseline")) return chosen = &kernels_baseline, true;
  return false;
}

}  // namespace roialign
