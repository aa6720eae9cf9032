#include "lib/core/thread_pool.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <exception>
#include <utility>

#include "lib/core/errors.h"

namespace dstrain {

namespace {
constexpr int kSpins = 4000;  // some tens of microseconds: the next loop of a step usually comes within it

inline void pause() { __builtin_ia32_pause(); }

void end(std::vector<std::thread>& workers, std::atomic<bool>& stop, std::atomic<std::uint32_t>& generation) {
  stop.store(true);
  generation.fetch_add(1);
  generation.notify_all();
  for (auto& w : workers) w.join();
}
}  // namespace

int available_cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) != 0) return 1;
  const int n = CPU_COUNT(&set);
  return n < 1 ? 1 : n;
}

int online_cores() { return std::max(1, static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN))); }

ThreadPool::ThreadPool(int threads) {
  check(threads >= 1, "a thread pool of {} threads", threads);
  workers_.reserve(static_cast<std::size_t>(threads) - 1);
  try {
    for (int i = 1; i < threads; ++i) workers_.emplace_back([this] { work(); });
  } catch (...) {
    end(workers_, stop_, generation_);
    throw;
  }
}

ThreadPool::~ThreadPool() { end(workers_, stop_, generation_); }

void ThreadPool::drain() {
  for (;;) {
    const std::int64_t i = next_.fetch_add(1);
    if (i >= tiles_) return;
    try {
      call_(body_, i);
    } catch (...) {
      const std::lock_guard lock(error_mutex_);
      if (!error_) error_ = std::current_exception();
    }
  }
}

void ThreadPool::work() {
  std::uint32_t seen = 0;
  for (;;) {
    for (int s = 0; s < kSpins && generation_.load(std::memory_order_acquire) == seen; ++s) pause();
    generation_.wait(seen, std::memory_order_acquire);
    seen = generation_.load(std::memory_order_acquire);
    if (stop_.load()) return;
    drain();
    if (busy_.fetch_sub(1) == 1) busy_.notify_one();
  }
}

void ThreadPool::run(std::int64_t tiles, Call call, void* body) {
  call_ = call;
  body_ = body;
  tiles_ = tiles;
  next_.store(0);
  busy_.store(static_cast<int>(workers_.size()));
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
  drain();
  for (int s = 0; s < kSpins && busy_.load(std::memory_order_acquire) != 0; ++s) pause();
  for (int b = busy_.load(); b != 0; b = busy_.load()) busy_.wait(b);
  if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
}

}  // namespace dstrain
