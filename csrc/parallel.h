// PyTorch's own thread pool, reached through two functions of its stable C ABI.
#pragma once

#include <atomic>
#include <cstdint>

namespace roialign {

using ParallelBody = void (*)(int64_t begin, int64_t end, void* context);
using ParallelFor = int32_t (*)(int64_t begin, int64_t end, int64_t grain, ParallelBody body, void* context);
using GetNumThreads = int32_t (*)(uint32_t* threads);

// Called once, at import. Null pointers mean "run serially".
void set_thread_pool(ParallelFor parallel_for, GetNumThreads get_num_threads);

// Threads a call may use now; 1 in a forked child, where the parent's pool no longer exists.
int64_t thread_count();

using WorkerBody = void (*)(void* context);
// Runs the body so many times, in parallel when the pool allows, and rethrows the first exception.
void run_workers(int64_t workers, WorkerBody body, void* context);

// As many workers as are useful; each asks for tasks until none is left, so that uneven tasks balance. Which
// worker gets which task is not fixed: a task must not depend on it. `worker(next)` calls next() for a task
// index and stops on a negative one; it owns whatever scratch memory it needs.
template <class Worker>
void for_each_task(int64_t tasks, int64_t threads, Worker&& worker) {
  std::atomic<int64_t> counter{0};
  auto next = [&counter, tasks]() -> int64_t {
    const int64_t task = counter.fetch_add(1, std::memory_order_relaxed);
    return task < tasks ? task : -1;
  };
  auto body = [&worker, &next] { worker(next); };
  using Body = decltype(body);
  run_workers(tasks < threads ? tasks : threads, [](void* context) { (*static_cast<Body*>(context))(); }, &body);
}

}  // namespace roialign
