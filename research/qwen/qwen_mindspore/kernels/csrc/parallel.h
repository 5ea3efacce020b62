// A pool of threads that waits by spinning: a decode step has some hundred pieces of work, a few microseconds each.
//
// Work is a region: a function that every thread of the pool runs at once, and in which they share out what there is to
// do. Kernels are called by all threads of a region together.
#pragma once

#if defined(__linux__)
#include <sched.h>
#endif
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace qwen {

constexpr int kLineBytes = 64;  // of a cache line

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

// Memory that grows and does not shrink, on a cache line's boundary: a vector that lies across two costs two reads.
class Buffer {
 public:
  float *reserve(size_t floats) {
    constexpr size_t kLineFloats = kLineBytes / sizeof(float);
    if (memory_.size() < floats + kLineFloats) memory_ = std::vector<float>(floats + kLineFloats);
    const auto address = reinterpret_cast<uintptr_t>(memory_.data());
    return reinterpret_cast<float *>((address + kLineBytes - 1) / kLineBytes * kLineBytes);
  }

 private:
  std::vector<float> memory_;
};

class Pool;

// One thread of a region.
class Thread {
 public:
  Thread(Pool &pool, int index) : pool_(pool), index_(index) {}

  int index() const { return index_; }
  int count() const;

  // Waits until every thread of the region is here.
  void barrier();

  // Hands out the numbers 0, 1, 2, ... since the region's start or the last barrier.
  int64_t next_item();

  // Hands out 0 .. count - 1, then -1: to each thread those of a stretch of its own, in order, as memory is read best;
  // then what is left of others'. As next_item, since the region's start or the last barrier.
  int64_t next_of_own(int64_t count);

  // Memory of this thread's own, until the next call.
  static float *scratch(size_t floats) {
    static thread_local Buffer buffer;
    return buffer.reserve(floats);
  }

  // Memory that the threads of the region share, until the next call; all must make it.
  float *shared(size_t floats);

 private:
  Pool &pool_;
  const int index_;
};

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

  // Runs a region: work on every thread, of which the first is the caller's. Returns when all are done. One at a time.
  void run(const std::function<void(Thread &)> &work) {
    std::lock_guard<std::mutex> one_region(region_);
    work_ = &work;
    running_.store(size_ - 1, std::memory_order_relaxed);
    restart();
    {
      std::lock_guard<std::mutex> lock(sleep_);
      generation_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
    Thread caller(*this, 0);
    work(caller);
    wait_until([&] { return running_.load(std::memory_order_acquire) == 0; });
  }

 private:
  friend class Thread;

  struct alignas(kLineBytes) Stretch {
    std::atomic<int64_t> next{0};
  };

  Pool() : size_(std::max(1, wanted_threads())), stretches_(size_) {
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

  void serve(int index) {
    Thread thread(*this, index);
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

  // Items are handed out from the first again.
  void restart() {
    next_item_.store(0, std::memory_order_relaxed);
    for (Stretch &stretch : stretches_) stretch.next.store(0, std::memory_order_relaxed);
  }

  static constexpr int kLooks = 10000;  // about a quarter of a millisecond: longer than the gap between two operators
  const int size_;
  std::vector<Stretch> stretches_;
  Buffer shared_;
  const std::function<void(Thread &)> *work_ = nullptr;
  std::mutex region_, sleep_;
  std::condition_variable wake_;
  std::atomic<unsigned> generation_{0};
  std::atomic<int> running_{0}, arrived_{0}, round_{0};
  std::atomic<int64_t> next_item_{0};
};

inline int Thread::count() const { return pool_.size_; }

inline void Thread::barrier() {
  const int round = pool_.round_.load(std::memory_order_acquire);
  if (pool_.arrived_.fetch_add(1, std::memory_order_acq_rel) == pool_.size_ - 1) {
    pool_.arrived_.store(0, std::memory_order_relaxed);
    pool_.restart();
    pool_.round_.fetch_add(1, std::memory_order_release);
  } else {
    wait_until([&] { return pool_.round_.load(std::memory_order_acquire) != round; });
  }
}

inline int64_t Thread::next_item() { return pool_.next_item_.fetch_add(1, std::memory_order_relaxed); }

inline int64_t Thread::next_of_own(int64_t count) {
  const int64_t threads = pool_.size_;
  for (int64_t i = 0; i < threads; ++i) {
    const int64_t owner = (index_ + i) % threads, first = count * owner / threads;
    const int64_t item = first + pool_.stretches_[owner].next.fetch_add(1, std::memory_order_relaxed);
    if (item < count * (owner + 1) / threads) return item;
  }
  return -1;
}

inline float *Thread::shared(size_t floats) {
  if (index_ == 0) pool_.shared_.reserve(floats);
  barrier();
  return pool_.shared_.reserve(floats);
}

}  // namespace qwen
