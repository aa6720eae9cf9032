#include "lib/core/gpu.h"

#include "lib/core/errors.h"

namespace dstrain::gpu {

namespace {
[[noreturn]] void none() { fail(ExitCode::device, "this build has no CUDA"); }
}  // namespace

int count() { return 0; }
std::string why_none() { return "this build has no CUDA"; }
Info info(int) { none(); }
std::vector<std::string> library_versions() { return {}; }
void use(int) { none(); }
int current() { none(); }
MemoryUse memory_use() { none(); }
void* allocate(std::size_t) { none(); }
void release(void*) noexcept {}
void* allocate_pinned(std::size_t) { none(); }
void release_pinned(void*) noexcept {}
void* allocate_managed(std::size_t) { none(); }
void copy_now(void*, const void*, std::size_t) { none(); }

Queue::Queue(Priority) { none(); }
Queue::~Queue() = default;
void Queue::synchronize() const { none(); }
void Queue::copy(void*, const void*, std::size_t) const { none(); }
void Queue::fill(void*, unsigned char, std::size_t) const { none(); }
void Queue::wait(const Event&) const { none(); }
void Queue::call(void (*)(void*), void*) const { none(); }

Event::Event(Timing) { none(); }
Event::~Event() = default;
void Event::record(const Queue&) { none(); }
bool Event::done() const { none(); }
void Event::synchronize() const { none(); }
double Event::seconds_since(const Event&) const { none(); }

Graph::~Graph() = default;
Graph& Graph::operator=(Graph&& other) noexcept {
  handle_ = other.handle_;
  return *this;
}
void Graph::begin(const Queue&) { none(); }
Graph Graph::end(const Queue&) { none(); }
void Graph::abandon(const Queue&) noexcept {}
void Graph::launch(const Queue&) const { none(); }

void push_range(const char*) {}
void pop_range() {}

}  // namespace dstrain::gpu
