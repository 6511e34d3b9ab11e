#include <cstdint>
#include <cstring>
#include <iterator>

#include "kernels/kernels.h"

#if defined(ROIALIGN_AVX2) || defined(ROIALIGN_AVX512)
#include <cpuid.h>
#endif

namespace roialign {
namespace {

struct Built {
  const KernelSet& kernels;
  bool (*has)();  // whether this machine can run them
};

#if defined(ROIALIGN_AVX2) || defined(ROIALIGN_AVX512)
// Asked of the processor: __builtin_cpu_supports needs a library of the compiler that zig and clang-cl do without.
bool has(uint32_t basic, uint32_t extended, uint32_t registers) {
  uint32_t a = 0, b = 0, c = 0, d = 0;
  constexpr uint32_t osxsave = 1u << 27;
  if (!__get_cpuid(1, &a, &b, &c, &d) || (c & (basic | osxsave)) != (basic | osxsave)) return false;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (b & extended) != extended) return false;
  uint32_t saved = 0, upper = 0;  // by the operating system, from one thread to the next
  __asm__("xgetbv" : "=a"(saved), "=d"(upper) : "c"(0));
  return (saved & registers) == registers;
}

constexpr uint32_t fma = 1u << 12, avx = 1u << 28, f16c = 1u << 29;
constexpr uint32_t avx2 = 1u << 5, avx512f = 1u << 16, avx512dq = 1u << 17, avx512bw = 1u << 30, avx512vl = 1u << 31;
constexpr uint32_t wide = 0x6, widest = 0xe6;  // registers of 256 bits, of 512 bits and masks too

[[maybe_unused]] bool has_avx2() { return has(avx | fma | f16c, avx2, wide); }
[[maybe_unused]] bool has_avx512() {
  return has(avx | fma | f16c, avx2 | avx512f | avx512dq | avx512bw | avx512vl, widest);
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
