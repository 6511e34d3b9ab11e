// What one operating system does unlike another.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>

#ifdef _WIN32
#include <process.h>
#else
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace roialign {

// Of this process: a forked child has another one.
inline int process_id() {
#ifdef _WIN32
  return _getpid();
#else
  return getpid();
#endif
}

// Memory from a line of the cache on; null if there is none. C++'s own, as aligned_alloc is not everywhere.
inline char* allocate_lines(int64_t bytes, size_t line) {
  return static_cast<char*>(::operator new(static_cast<size_t>(bytes), std::align_val_t{line}, std::nothrow));
}
inline void free_lines(char* memory, size_t line) { ::operator delete(memory, std::align_val_t{line}); }

// Fresh memory arrives page by page, which costs more than the pooling itself; huge pages make it few, where Linux
// gives them.
inline void expect_large([[maybe_unused]] void* data, [[maybe_unused]] int64_t bytes) {
#ifdef MADV_HUGEPAGE
  constexpr uintptr_t page = 4096;
  if (bytes < (4 << 20)) return;
  const uintptr_t from = (reinterpret_cast<uintptr_t>(data) + page - 1) / page * page;
  const uintptr_t to = (reinterpret_cast<uintptr_t>(data) + static_cast<uintptr_t>(bytes)) / page * page;
  madvise(reinterpret_cast<void*>(from), to - from, MADV_HUGEPAGE);
#endif
}

}  // namespace roialign
