#include "lib/core/gpu.h"

#include <cublasLt.h>
#include <cuda_runtime_api.h>
#include <cudnn.h>
#include <nccl.h>
#include <nvtx3/nvToolsExt.h>

#include <cstring>
#include <mutex>
#include <utility>

#include "lib/core/cuda/check.h"

namespace dstrain::gpu {

namespace {
cudaStream_t stream(const Queue& q) { return static_cast<cudaStream_t>(q.handle()); }
cudaEvent_t event(const Event& e) { return static_cast<cudaEvent_t>(e.handle()); }

// The driver refuses to wait for a device on which any thread records a graph: where ranks are threads that share one,
// such a wait lets the recording end first. Recursive, so that a wait inside a recording is refused as ever.
std::recursive_mutex& recording() {
  static std::recursive_mutex mutex;
  return mutex;
}

void wait_for_device() { cuda_check(cudaDeviceSynchronize(), "cudaDeviceSynchronize"); }
}  // namespace

int count() {
  int n = 0;
  return cudaGetDeviceCount(&n) == cudaSuccess ? n : (static_cast<void>(cudaGetLastError()), 0);
}

std::string why_none() {
  int n = 0;
  const cudaError_t e = cudaGetDeviceCount(&n);
  static_cast<void>(cudaGetLastError());
  return e != cudaSuccess ? cudaGetErrorString(e) : n == 0 ? "the driver shows no device" : "";
}

Info info(int device) {
  cudaDeviceProp p{};
  cuda_check(cudaGetDeviceProperties(&p, device), "cudaGetDeviceProperties");
  Info i{.name = p.name,
         .major = p.major,
         .minor = p.minor,
         .multiprocessors = p.multiProcessorCount,
         .memory = p.totalGlobalMem,
         .l2 = static_cast<std::size_t>(p.l2CacheSize)};
  cuda_check(cudaDriverGetVersion(&i.driver), "cudaDriverGetVersion");
  cuda_check(cudaRuntimeGetVersion(&i.runtime), "cudaRuntimeGetVersion");
  constexpr char digits[] = "0123456789abcdef";
  for (const char c : p.uuid.bytes) {
    i.uuid += digits[static_cast<unsigned char>(c) >> 4];
    i.uuid += digits[static_cast<unsigned char>(c) & 15];
  }
  return i;
}

std::vector<std::string> library_versions() {
  const auto dotted = [](std::size_t v, std::size_t major, std::size_t minor) {
    return format("{}.{}.{}", v / major, v % major / minor, v % minor);
  };
  int nccl = 0;
  ncclGetVersion(&nccl);
  return {"cuBLASLt " + dotted(cublasLtGetVersion(), 10000, 100), "cuDNN " + dotted(cudnnGetVersion(), 10000, 100),
          "NCCL " + dotted(static_cast<std::size_t>(nccl), 10000, 100)};
}

void use(int device) { cuda_check(cudaSetDevice(device), "cudaSetDevice"); }

int current() {
  int device = 0;
  cuda_check(cudaGetDevice(&device), "cudaGetDevice");
  return device;
}

MemoryUse memory_use() {
  MemoryUse m;
  cuda_check(cudaMemGetInfo(&m.free, &m.total), "cudaMemGetInfo");
  return m;
}

void* allocate(std::size_t bytes) {
  if (bytes == 0) return nullptr;
  void* p = nullptr;
  const cudaError_t e = cudaMalloc(&p, bytes);
  if (e == cudaErrorMemoryAllocation) {
    static_cast<void>(cudaGetLastError());
    return nullptr;
  }
  cuda_check(e, "cudaMalloc");
  const std::lock_guard lock(recording());
  cuda_check(cudaMemset(p, 0, bytes), "cudaMemset");
  // The legacy stream's fill must be over before other streams use the memory.
  wait_for_device();
  return p;
}

void release(void* memory) noexcept { static_cast<void>(cudaFree(memory)); }

void* allocate_pinned(std::size_t bytes) {
  if (bytes == 0) return nullptr;
  void* p = nullptr;
  const cudaError_t e = cudaHostAlloc(&p, bytes, cudaHostAllocPortable);
  if (e == cudaErrorMemoryAllocation) {
    static_cast<void>(cudaGetLastError());
    return nullptr;
  }
  cuda_check(e, "cudaHostAlloc");
  std::memset(p, 0, bytes);
  return p;
}

void release_pinned(void* memory) noexcept { static_cast<void>(cudaFreeHost(memory)); }

void* allocate_managed(std::size_t bytes) {
  void* p = nullptr;
  cuda_check(cudaMallocManaged(&p, bytes), "cudaMallocManaged");
  return p;
}

void copy_now(void* to, const void* from, std::size_t bytes) {
  const std::lock_guard lock(recording());
  wait_for_device();
  cuda_check(cudaMemcpy(to, from, bytes, cudaMemcpyDefault), "cudaMemcpy");
  // From pageable memory cudaMemcpy may return before the last part has arrived.
  wait_for_device();
}

Queue::Queue(Priority priority) {
  int least = 0, greatest = 0;
  cuda_check(cudaDeviceGetStreamPriorityRange(&least, &greatest), "cudaDeviceGetStreamPriorityRange");
  cudaStream_t s = nullptr;
  cuda_check(cudaStreamCreateWithPriority(&s, cudaStreamNonBlocking, priority == Priority::high ? greatest : least),
             "cudaStreamCreateWithPriority");
  handle_ = s;
}

Queue::~Queue() {
  if (handle_) static_cast<void>(cudaStreamDestroy(stream(*this)));
}

void Queue::synchronize() const { cuda_check(cudaStreamSynchronize(stream(*this)), "cudaStreamSynchronize"); }

void Queue::copy(void* to, const void* from, std::size_t bytes) const {
  if (bytes > 0) cuda_check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream(*this)), "cudaMemcpyAsync");
}

void Queue::fill(void* memory, unsigned char byte, std::size_t bytes) const {
  if (bytes > 0) cuda_check(cudaMemsetAsync(memory, byte, bytes, stream(*this)), "cudaMemsetAsync");
}

void Queue::wait(const Event& e) const {
  cuda_check(cudaStreamWaitEvent(stream(*this), event(e), 0), "cudaStreamWaitEvent");
}

void Queue::call(void (*function)(void*), void* data) const {
  cuda_check(cudaLaunchHostFunc(stream(*this), function, data), "cudaLaunchHostFunc");
}

Event::Event(Timing timing) {
  cudaEvent_t e = nullptr;
  cuda_check(cudaEventCreateWithFlags(&e, timing == Timing::on ? cudaEventDefault : cudaEventDisableTiming),
             "cudaEventCreateWithFlags");
  handle_ = e;
}

Event::~Event() {
  if (handle_) static_cast<void>(cudaEventDestroy(event(*this)));
}

void Event::record(const Queue& queue) { cuda_check(cudaEventRecord(event(*this), stream(queue)), "cudaEventRecord"); }

bool Event::done() const {
  const cudaError_t e = cudaEventQuery(event(*this));
  if (e == cudaErrorNotReady) {
    static_cast<void>(cudaGetLastError());
    return false;
  }
  cuda_check(e, "cudaEventQuery");
  return true;
}

void Event::synchronize() const { cuda_check(cudaEventSynchronize(event(*this)), "cudaEventSynchronize"); }

double Event::seconds_since(const Event& earlier) const {
  float milliseconds = 0;
  cuda_check(cudaEventElapsedTime(&milliseconds, event(earlier), event(*this)), "cudaEventElapsedTime");
  return static_cast<double>(milliseconds) * 1e-3;
}

Graph::~Graph() {
  if (handle_) static_cast<void>(cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(handle_)));
}

Graph& Graph::operator=(Graph&& other) noexcept {
  std::swap(handle_, other.handle_);
  return *this;
}

void Graph::begin(const Queue& queue) {
  std::unique_lock lock(recording());
  cuda_check(cudaStreamBeginCapture(stream(queue), cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
  lock.release();  // until end() or abandon()
}

Graph Graph::end(const Queue& queue) {
  cudaGraph_t recorded = nullptr;
  cuda_check(cudaStreamEndCapture(stream(queue), &recorded), "cudaStreamEndCapture");
  cudaGraphExec_t ready = nullptr;
  const cudaError_t e = cudaGraphInstantiate(&ready, recorded, 0);
  static_cast<void>(cudaGraphDestroy(recorded));
  cuda_check(e, "cudaGraphInstantiate");
  recording().unlock();  // after an exception abandon() does
  Graph graph;
  graph.handle_ = ready;
  return graph;
}

void Graph::abandon(const Queue& queue) noexcept {
  cudaGraph_t recorded = nullptr;
  static_cast<void>(cudaStreamEndCapture(stream(queue), &recorded));
  if (recorded) static_cast<void>(cudaGraphDestroy(recorded));
  static_cast<void>(cudaGetLastError());
  recording().unlock();
}

void Graph::launch(const Queue& queue) const {
  cuda_check(cudaGraphLaunch(static_cast<cudaGraphExec_t>(handle_), stream(queue)), "cudaGraphLaunch");
}

void push_range(const char* name) { nvtxRangePushA(name); }
void pop_range() { nvtxRangePop(); }

}  // namespace dstrain::gpu
