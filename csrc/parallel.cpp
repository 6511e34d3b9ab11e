#include "parallel.h"

#include <cfenv>
#include <exception>
#include <mutex>

#include "machine.h"

namespace roialign {
namespace {

// Written once at import, read-only afterwards.
ParallelFor pool_parallel_for = nullptr;
GetNumThreads pool_num_threads = nullptr;
int pool_owner = 0;

struct Region {
  WorkerBody body;
  void* context;
  std::fenv_t environment;  // of the calling thread
  std::mutex mutex;
  std::exception_ptr error;
};

// An exception must not cross the pool's C interface: it is kept and thrown again on the calling thread. Whether that
// thread flushes subnormal numbers to zero holds for its workers too: an answer must not depend on who computes it.
void run_range(int64_t begin, int64_t end, void* context) {
  auto& region = *static_cast<Region*>(context);
  std::fenv_t own;
  std::fegetenv(&own);
  std::fesetenv(&region.environment);
  try {
    for (int64_t i = begin; i < end; ++i) region.body(region.context);
  } catch (...) {
    const std::lock_guard<std::mutex> lock(region.mutex);
    if (!region.error) region.error = std::current_exception();
  }
  std::fesetenv(&own);
}

}  // namespace

void set_thread_pool(ParallelFor parallel_for, GetNumThreads get_num_threads) {
  pool_parallel_for = parallel_for;
  pool_num_threads = get_num_threads;
  pool_owner = process_id();
}

int64_t thread_count() {
  if (!pool_parallel_for || !pool_num_threads || process_id() != pool_owner) return 1;
  uint32_t threads = 1;
  if (pool_num_threads(&threads) != 0 || threads < 1) return 1;
  return threads;
}

void run_workers(int64_t workers, WorkerBody body, void* context) {
  if (workers <= 1) {  // a small call: nothing to hand over
    if (workers == 1) body(context);
    return;
  }
  Region region{body, context, {}, {}, {}};
  std::fegetenv(&region.environment);
  if (!pool_parallel_for || pool_parallel_for(0, workers, 1, run_range, &region) != 0) run_range(0, workers, &region);
  if (region.error) std::rethrow_exception(region.error);
}

}  // namespace roialign
