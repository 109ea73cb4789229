// Work for torch's threads: tasks are handed out one by one, in the order given.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <new>
#include <utility>
#include <vector>

#include "interface.h"

namespace trisparse::TRISPARSE_SET {

// Below this many multiplications waking a second thread costs more than it saves (about 1 ms of one core in
// float)
constexpr int64_t kWorthThreads = 50'000'000;

// The same in bytes where few rows read many keys (0.3 ms of one core): a thread that must first be woken
// costs more than smaller calls take
constexpr int64_t kWorthThreadsBytes = 2'000'000;

// What is being caught, as a status: C and torch's threads know no exceptions
inline Status current_error() {
  try {
    throw;
  } catch (const std::bad_alloc&) {
    return kOutOfMemory;
  } catch (...) {
    return kFailed;
  }
}

inline int64_t threads_if(const ThreadPool& pool, int64_t tasks, bool worth) {
  uint32_t threads = 1;
  if (!worth || pool.get_num_threads(&threads) != 0) return 1;
  return tasks < int64_t(threads) ? tasks : int64_t(threads);
}

inline int64_t threads_for(const ThreadPool& pool, int64_t tasks, int64_t multiplications) {
  return threads_if(pool, tasks, multiplications >= kWorthThreads);
}

// `tasks`, those with most `work` [tasks] first, equal ones in the order given: the last are then the
// shortest
template <class Task>
std::vector<Task> longest_first(const std::vector<Task>& tasks, const std::vector<int64_t>& work) {
  // numbers are sorted, not tasks: the compiler makes one sort for all kinds of them
  std::vector<std::pair<int64_t, size_t>> order;
  for (size_t index = 0; index < tasks.size(); ++index) order.push_back({-work[index], index});
  std::sort(order.begin(), order.end());
  std::vector<Task> sorted;
  for (const auto& [_, index] : order) sorted.push_back(tasks[index]);
  return sorted;
}

// Calls `function(worker, task)` for every task; `make_worker()` is called once per thread that takes part.
// Which thread does what changes nothing: tasks write to places of their own.
template <class MakeWorker, class Function>
Status run_tasks(const ThreadPool& pool, int64_t tasks, int64_t threads, MakeWorker make_worker,
                 Function function) {
  struct Context {
    MakeWorker& make_worker;
    Function& function;
    int64_t tasks;
    std::atomic<int64_t> next{0};
    std::atomic<int32_t> status{kOk};
  } context{make_worker, function, tasks};
  const RangeFunction work = [](int64_t, int64_t, void* pointer) {
    auto& shared = *static_cast<Context*>(pointer);
    try {
      auto worker = shared.make_worker();
      for (;;) {
        const int64_t task = shared.next.fetch_add(1);
        if (task >= shared.tasks || shared.status.load() != kOk) return;
        shared.function(worker, task);
      }
    } catch (...) {
      shared.status.store(current_error());
    }
  };
  if (tasks <= 0) return kOk;
  if (threads <= 1) {
    work(0, 1, &context);
  } else if (pool.parallel_for(0, threads, 1, work, &context) != 0) {
    return kInvalid;
  }
  return Status(context.status.load());
}

}  // namespace trisparse::TRISPARSE_SET
