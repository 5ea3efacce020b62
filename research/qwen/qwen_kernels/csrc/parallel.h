// A pool of threads that waits by spinning: a decode step has some hundred parallel regions, a few microseconds apart.
#pragma once

#if defined(__linux__)
#include <sched.h>
#endif
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace qwen {

// Waits until done() is true: spinning, for that is soonest, but giving the core away where another program wants it.
template <typename Done>
void wait_until(const Done &done) {
  for (int spins = 0; !done(); ++spins) {
    if (spins >= 2000) std::this_thread::yield();
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  }
}

class Pool {
 public:
  // One pool a process, with a thread for each core that the process may use, or QWEN_NUM_THREADS.
  static Pool &get() {
    static Pool *pool = new Pool();  // never destroyed: its threads may outlive static destructors
    static pid_t owner = getpid();
    if (owner != getpid()) {         // a fork has the memory, but not the threads
      pool = new Pool();
      owner = getpid();
    }
    return *pool;
  }

  int size() const { return size_; }

  // Runs work(thread) on every thread, 0 being the caller's, and returns when all are done. One region at a time.
  void run(const std::function<void(int)> &work) {
    std::lock_guard<std::mutex> one_region(region_);
    work_ = &work;
    running_.store(size_ - 1, std::memory_order_relaxed);
    next_item_.store(0, std::memory_order_relaxed);
    {
      std::lock_guard<std::mutex> lock(sleep_);
      generation_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
    work(0);
    wait_until([&] { return running_.load(std::memory_order_acquire) == 0; });
  }

  // Inside a region: waits until every thread of it is here.
  void barrier() {
    const int round = round_.load(std::memory_order_acquire);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) == size_ - 1) {
      arrived_.store(0, std::memory_order_relaxed);
      next_item_.store(0, std::memory_order_relaxed);
      round_.fetch_add(1, std::memory_order_release);
    } else {
      wait_until([&] { return round_.load(std::memory_order_acquire) != round; });
    }
  }

  // Inside a region: hands out the numbers 0, 1, 2, ... since its start, or since the last barrier.
  int next_item() { return next_item_.fetch_add(1, std::memory_order_relaxed); }

 private:
  Pool() {
    size_ = std::max(1, wanted_threads());
    for (int thread = 1; thread < size_; ++thread) std::thread(&Pool::serve, this, thread).detach();
  }

  static int wanted_threads() {
    if (const char *wanted = std::getenv("QWEN_NUM_THREADS")) return std::atoi(wanted);
#if defined(__linux__)
    cpu_set_t cpus;
    if (sched_getaffinity(0, sizeof(cpus), &cpus) == 0) return CPU_COUNT(&cpus);
#endif
    return static_cast<int>(std::thread::hardware_concurrency());
  }

  void serve(int thread) {
    for (unsigned seen = 0;; ++seen) {
      const auto called = [&] { return generation_.load(std::memory_order_acquire) != seen; };
      int looks = 0;
      wait_until([&] { return called() || ++looks == kLooks; });
      if (!called()) {
        std::unique_lock<std::mutex> lock(sleep_);
        wake_.wait(lock, called);
      }
      (*work_)(thread);
      running_.fetch_sub(1, std::memory_order_release);
    }
  }

  static constexpr int kLooks = 10000;  // about a quarter of a millisecond: longer than the gap between two kernels
  int size_ = 1;
  const std::function<void(int)> *work_ = nullptr;
  std::mutex region_, sleep_;
  std::condition_variable wake_;
  std::atomic<unsigned> generation_{0};
  std::atomic<int> running_{0}, arrived_{0}, round_{0}, next_item_{0};
};

// Memory of a kernel's own, reused by the next call. Only inside Pool::run or by the thread that is about to call it.
inline float *scratch(size_t floats) {
  static thread_local std::vector<float> memory;
  if (memory.size() < floats + 16) memory.resize(floats + 16);
  const auto address = reinterpret_cast<uintptr_t>(memory.data());
  return reinterpret_cast<float *>((address + 63) & ~uintptr_t{63});
}

}  // namespace qwen
