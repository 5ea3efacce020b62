// A pool of threads that waits by spinning: a decode step has some hundred pieces of work, a few microseconds each.
//
// Work is a region: a function that every thread of the pool runs at once, and in which they share out what there is to
// do. Kernels are called by all threads of a region together.
#pragma once

#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#endif
#if defined(QWEN_POISON_BUFFERS)
#include <sanitizer/asan_interface.h>
#endif
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace qwen {

constexpr int kLineBytes = 64;  // of a cache line

// Tells the core that this is a loop that waits.
inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("isb" ::: "memory");  // `yield` does nothing on most cores; this takes about as long as x86's pause
#endif
}

// A number that threads wait for to change. They look at it for a while, for that is soonest, and then sleep: where other
// programs want the cores, the thread that is waited for may not be running, and only a core that is given away lets it.
class Signal {
 public:
  uint32_t now() const { return number_.load(std::memory_order_acquire); }

  // Returns once the number is no longer `seen`. After so many looks, of about 50 ns each, it sleeps.
  void wait(uint32_t seen, int looks) {
    for (int look = 0; look < looks; ++look) {
      if (now() != seen) return;
      pause();
    }
    sleepers_.fetch_add(1);
    while (number_.load() == seen) sleep(seen);
    sleepers_.fetch_sub(1);
  }

  // Changes the number, and wakes who sleeps.
  void change() {
    number_.fetch_add(1);
    if (sleepers_.load() != 0) wake();
  }

 private:
#if defined(__linux__)
  void sleep(uint32_t seen) { syscall(SYS_futex, &number_, FUTEX_WAIT_PRIVATE, seen, nullptr, nullptr, 0); }
  void wake() { syscall(SYS_futex, &number_, FUTEX_WAKE_PRIVATE, INT32_MAX, nullptr, nullptr, 0); }
#else
  void sleep(uint32_t) { std::this_thread::yield(); }
  void wake() {}
#endif

  std::atomic<uint32_t> number_{0};
  std::atomic<int> sleepers_{0};
};

// Memory that grows and does not shrink, on a cache line's boundary: a vector that lies across two costs two reads.
class Buffer {
 public:
  float *reserve(size_t floats) {
    constexpr size_t kLineFloats = kLineBytes / sizeof(float);
    if (memory_.size() < floats + kLineFloats) memory_ = std::vector<float>(floats + kLineFloats);
    const auto address = reinterpret_cast<uintptr_t>(memory_.data());
    auto *begin = reinterpret_cast<float *>((address + kLineBytes - 1) / kLineBytes * kLineBytes);
    bound(begin, floats);
    return begin;
  }

 private:
  // Under AddressSanitizer: what is behind the floats is nobody's, though more were asked for before.
  void bound(float *begin, size_t floats) {
#if defined(QWEN_POISON_BUFFERS)
    const size_t all = memory_.data() + memory_.size() - begin;
    __asan_unpoison_memory_region(begin, floats * sizeof(float));
    __asan_poison_memory_region(begin + floats, (all - floats) * sizeof(float));
#else
    static_cast<void>(begin), static_cast<void>(floats);
#endif
  }

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
  // One pool a process, with as many threads as `wanted` says.
  static Pool &get() {
    static Pool *pool = new Pool();  // never destroyed: its threads may outlive static destructors
    static pid_t owner = getpid();
    if (owner != getpid()) {         // a fork has the memory, but not the threads
      pool = new Pool();
      owner = getpid();
    }
    return *pool;
  }

  // How many threads a pool gets that is not made yet.
  static int &wanted() {
    static int threads = 1;
    return threads;
  }

  // Others who want the pool wait while this is held. For an operator that keeps something between its kernels: models
  // may run in several threads of a process.
  std::unique_lock<std::recursive_mutex> alone() { return std::unique_lock<std::recursive_mutex>(mutex_); }

  // Memory between two kernels of an operator, which is `alone`; there are five.
  float *between(int which, size_t floats) { return between_[which].reserve(floats); }

  // Runs a region: work on every thread, of which the first is the caller's. Returns when all are done. One at a time.
  void run(const std::function<void(Thread &)> &work) {
    const auto one_region = alone();
    work_ = &work;
    running_.store(size_, std::memory_order_relaxed);
    restart();
    const uint32_t unfinished = finished_.now();
    begun_.change();
    Thread caller(*this, 0);
    work(caller);
    leave();
    finished_.wait(unfinished, kLooks);
  }

 private:
  friend class Thread;

  struct alignas(kLineBytes) Stretch {
    std::atomic<int64_t> next{0};
  };

  Pool() : size_(std::max(1, wanted())), stretches_(size_) {
    for (int thread = 1; thread < size_; ++thread) std::thread(&Pool::serve, this, thread).detach();
  }

  void serve(int index) {
    Thread thread(*this, index);
    for (uint32_t seen = 0;; ++seen) {
      begun_.wait(seen, kLooksBetween);
      (*work_)(thread);
      leave();
    }
  }

  // The last thread to leave a region ends it.
  void leave() {
    if (running_.fetch_sub(1, std::memory_order_acq_rel) == 1) finished_.change();
  }

  // Items are handed out from the first again.
  void restart() {
    next_item_.store(0, std::memory_order_relaxed);
    for (Stretch &stretch : stretches_) stretch.next.store(0, std::memory_order_relaxed);
  }

  // Looks before sleeping. Threads that share out work finish within some microseconds of each other, if all are running;
  // from one operator to the next it is some tens.
  static constexpr int kLooks = 600, kLooksBetween = 10000;
  const int size_;
  std::vector<Stretch> stretches_;
  Buffer shared_, between_[5];
  const std::function<void(Thread &)> *work_ = nullptr;
  std::recursive_mutex mutex_;
  Signal begun_, finished_, round_;
  std::atomic<int> running_{0}, arrived_{0};
  std::atomic<int64_t> next_item_{0};
};

inline int Thread::count() const { return pool_.size_; }

inline void Thread::barrier() {
  const uint32_t round = pool_.round_.now();
  if (pool_.arrived_.fetch_add(1, std::memory_order_acq_rel) == pool_.size_ - 1) {
    pool_.arrived_.store(0, std::memory_order_relaxed);
    pool_.restart();
    pool_.round_.change();
  } else {
    pool_.round_.wait(round, Pool::kLooks);
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
