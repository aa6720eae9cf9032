#pragma once
// The GPU behind a plain interface: memory, in-order queues of work, events, graphs. lib/core/cuda implements it with
// the CUDA runtime; in a build without CUDA lib/core/no_cuda does: count() is 0 and everything else throws.
// Handles are void*, so that no header of ours includes CUDA's. Every function throws Error{device} naming the call.

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace dstrain::gpu {

// Usable devices; 0 without CUDA, a driver or a device.
int count();
// Why count() is 0, for messages; empty when it is not.
std::string why_none();

struct Info {
  std::string name;
  int major = 0, minor = 0;  // compute capability
  int multiprocessors = 0;
  std::size_t memory = 0;       // bytes
  std::size_t l2 = 0;           // bytes
  int driver = 0, runtime = 0;  // CUDA's numbers: 13000 is 13.0
  std::string uuid;             // names the card on its host: ranks with equal ones share it
};
Info info(int device);
// CUDA's libraries that this process runs with: "cuBLASLt 13.0.0", "cuDNN 9.14.0", "NCCL 2.28.3".
std::vector<std::string> library_versions();
// Makes `device` the calling thread's. Each thread that touches the GPU calls it once.
void use(int device);
// The calling thread's.
int current();

struct MemoryUse {
  std::size_t free = 0, total = 0;  // bytes on the current device, as the driver counts
};
MemoryUse memory_use();

// `bytes` zeroed bytes of device memory, 256-byte aligned; null for 0 bytes or when memory is short.
void* allocate(std::size_t bytes);
void release(void* memory) noexcept;
// Zeroed page-locked host memory, which copies read and write while other work runs.
void* allocate_pinned(std::size_t bytes);
void release_pinned(void* memory) noexcept;
// Memory that host and device both read and write, the host while no work runs: for tests. release() frees it.
void* allocate_managed(std::size_t bytes);

// Between any two memories, done on return; everything enqueued before on any queue is done first.
void copy_now(void* to, const void* from, std::size_t bytes);

class Event;

// Work in order (cudaStream_t). Nothing here waits for the device but synchronize().
class Queue {
 public:
  enum class Priority : unsigned char { normal, high };
  explicit Queue(Priority priority = Priority::normal);
  ~Queue();
  Queue(const Queue&) = delete;
  Queue& operator=(const Queue&) = delete;

  void* handle() const { return handle_; }  // cudaStream_t
  // Throws what went wrong on the device since the last check.
  void synchronize() const;
  // Between any two memories. Host memory that is not pinned makes the caller wait.
  void copy(void* to, const void* from, std::size_t bytes) const;
  void fill(void* memory, unsigned char byte, std::size_t bytes) const;
  // What is enqueued from now on runs after the event's last record().
  void wait(const Event& event) const;
  // Runs function(data) on a thread of the driver's, in order with the work; it must not call CUDA.
  void call(void (*function)(void*), void* data) const;

 private:
  void* handle_ = nullptr;
};

// A point in a queue.
class Event {
 public:
  enum class Timing : unsigned char { off, on };
  explicit Event(Timing timing = Timing::off);
  ~Event();
  Event(Event&& other) noexcept : handle_(other.handle_) { other.handle_ = nullptr; }
  Event& operator=(Event&&) = delete;

  void record(const Queue& queue);
  bool done() const;                                 // true when it was never recorded
  void synchronize() const;                          // waits for it
  double seconds_since(const Event& earlier) const;  // both timed and done
  void* handle() const { return handle_; }           // cudaEvent_t

 private:
  void* handle_ = nullptr;
};

// Work recorded once and started as a whole (cudaGraphExec_t).
class Graph {
 public:
  Graph() = default;
  ~Graph();
  Graph(Graph&& other) noexcept : handle_(other.handle_) { other.handle_ = nullptr; }
  Graph& operator=(Graph&& other) noexcept;

  // Records instead of running what the calling thread enqueues on `queue`, and on queues that wait for it and that it
  // waits for again, until end().
  static void begin(const Queue& queue);
  static Graph end(const Queue& queue);
  // Leaves recording after an exception, one of end() too.
  static void abandon(const Queue& queue) noexcept;
  void launch(const Queue& queue) const;
  bool defined() const { return handle_ != nullptr; }

 private:
  void* handle_ = nullptr;
};

// Ranges for Nsight Systems (NVTX); free when no tool is attached.
void push_range(const char* name);
void pop_range();
class Range {
 public:
  explicit Range(const char* name) { push_range(name); }
  ~Range() { pop_range(); }
  Range(const Range&) = delete;
  Range& operator=(const Range&) = delete;
};

}  // namespace dstrain::gpu
