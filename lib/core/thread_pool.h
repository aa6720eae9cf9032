#pragma once
// A fixed set of threads that run the tiles of one loop at a time. How work is cut into tiles never depends on the
// number of threads, so neither do the bits.

#include <atomic>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

namespace dstrain {

class ThreadPool {
 public:
  // `threads` >= 1 counts the caller: 1 starts no thread.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls body(tile) once for each tile of [0, tiles), on any thread, and returns when all are done. The first
  // exception thrown by a tile is rethrown here. REQUIRES: one caller at a time; not from inside a tile.
  template <class F>
  void parallel_for(std::int64_t tiles, F&& body) {
    if (tiles <= 1 || workers_.empty()) {
      for (std::int64_t i = 0; i < tiles; ++i) body(i);
      return;
    }
    run(
        tiles, [](void* f, std::int64_t i) { (*static_cast<std::remove_reference_t<F>*>(f))(i); }, &body);
  }

 private:
  using Call = void (*)(void*, std::int64_t);
  void run(std::int64_t tiles, Call call, void* body);
  void work();
  void drain();

  std::vector<std::thread> workers_;
  std::atomic<std::uint32_t> generation_{0};
  std::atomic<bool> stop_{false};
  // The loop in progress. Written before generation_ is advanced, read after.
  Call call_ = nullptr;
  void* body_ = nullptr;
  std::int64_t tiles_ = 0;
  std::atomic<std::int64_t> next_{0};
  std::atomic<int> busy_{0};
  std::mutex error_mutex_;
  std::exception_ptr error_;
};

// Cores that this process may use (its affinity mask).
int available_cores();
// Cores that the machine runs.
int online_cores();

}  // namespace dstrain
