#include "lib/core/gpu_trace.h"

#include <cupti.h>
#include <cxxabi.h>
#include <dlfcn.h>

#include <algorithm>
#include <cstdlib>
#include <mutex>
#include <vector>

#include "lib/core/cuda/check.h"

namespace dstrain::gpu {

namespace {

constexpr std::size_t kBufferBytes = std::size_t{8} << 20;

// The few functions that are needed. CUPTI is loaded when a trace is asked for: it is no part of a driver, and machines
// that only train may be without it.
struct Cupti {
  void* library = nullptr;
  decltype(&cuptiActivityRegisterCallbacks) register_callbacks = nullptr;
  decltype(&cuptiActivityEnable) enable = nullptr;
  decltype(&cuptiActivityDisable) disable = nullptr;
  decltype(&cuptiActivityFlushAll) flush = nullptr;
  decltype(&cuptiActivityGetNextRecord) next = nullptr;
  decltype(&cuptiGetResultString) text = nullptr;

  Cupti() {
    for (const char* name : {"libcupti.so.13", "libcupti.so.12", "libcupti.so", "/usr/local/cuda/lib64/libcupti.so",
                             "/usr/local/cuda/extras/CUPTI/lib64/libcupti.so"})
      if ((library = dlopen(name, RTLD_NOW))) break;
    require(library != nullptr, ExitCode::device, "profile.steps: CUPTI cannot be loaded: {}", dlerror());
    load(register_callbacks, "cuptiActivityRegisterCallbacks");
    load(enable, "cuptiActivityEnable");
    load(disable, "cuptiActivityDisable");
    load(flush, "cuptiActivityFlushAll");
    load(next, "cuptiActivityGetNextRecord");
    load(text, "cuptiGetResultString");
  }
  void check(CUptiResult r, const char* call) const {
    if (r == CUPTI_SUCCESS) return;
    const char* why = "";
    text(r, &why);
    fail(ExitCode::device, "profile.steps: {}: {}", call, why);
  }

 private:
  template <class F>
  void load(F& function, const char* name) {
    function = reinterpret_cast<F>(dlsym(library, name));
    require(function != nullptr, ExitCode::device, "profile.steps: CUPTI has no {}", name);
  }
};

struct Event {
  std::string name;
  const char* kind;
  std::uint64_t begin, end;  // ns
  std::uint32_t stream;
};

std::string readable(const char* name) {
  if (!name) return "?";
  int status = 0;
  char* const text = abi::__cxa_demangle(name, nullptr, nullptr, &status);
  std::string out = status == 0 && text ? text : name;
  std::free(text);
  return out;
}

std::string json(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    if (static_cast<unsigned char>(c) >= 0x20) out += c;
  }
  return out + '"';
}

}  // namespace

struct Trace::Recorder {
  Cupti cupti;
  std::mutex mutex;
  std::vector<Event> events;

  void record(const CUpti_Activity& activity);
  // CUPTI's callbacks know no object: the trace that records now. See Trace.
  static Recorder* current;
  static void CUPTIAPI requested(std::uint8_t** buffer, std::size_t* size, std::size_t* records) {
    *buffer = static_cast<std::uint8_t*>(std::aligned_alloc(8, kBufferBytes));
    *size = *buffer ? kBufferBytes : 0;
    *records = 0;
  }
  static void CUPTIAPI completed(CUcontext, std::uint32_t, std::uint8_t* buffer, std::size_t, std::size_t valid) {
    CUpti_Activity* activity = nullptr;
    if (current) {
      const std::lock_guard lock(current->mutex);
      while (current->cupti.next(buffer, valid, &activity) == CUPTI_SUCCESS) current->record(*activity);
    }
    std::free(buffer);
  }
};

Trace::Recorder* Trace::Recorder::current = nullptr;

void Trace::Recorder::record(const CUpti_Activity& activity) {
  switch (activity.kind) {
    case CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL: {
      const auto& k = reinterpret_cast<const CUpti_ActivityKernel10&>(activity);
      events.push_back({readable(k.name), "kernel", k.start, k.end, k.streamId});
      return;
    }
    case CUPTI_ACTIVITY_KIND_MEMCPY: {
      const auto& m = reinterpret_cast<const CUpti_ActivityMemcpy6&>(activity);
      events.push_back({format("copy of {} bytes", m.bytes), "copy", m.start, m.end, m.streamId});
      return;
    }
    case CUPTI_ACTIVITY_KIND_MEMSET: {
      const auto& m = reinterpret_cast<const CUpti_ActivityMemset4&>(activity);
      events.push_back({format("fill of {} bytes", m.bytes), "fill", m.start, m.end, m.streamId});
      return;
    }
    default:
      return;
  }
}

Trace::Trace() : recorder_(std::make_unique<Recorder>()) {
  check(Recorder::current == nullptr, "two GPU traces at once");
  const Cupti& c = recorder_->cupti;
  c.check(c.register_callbacks(Recorder::requested, Recorder::completed), "cuptiActivityRegisterCallbacks");
  Recorder::current = recorder_.get();
  try {
    for (const CUpti_ActivityKind kind :
         {CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL, CUPTI_ACTIVITY_KIND_MEMCPY, CUPTI_ACTIVITY_KIND_MEMSET})
      c.check(c.enable(kind), "cuptiActivityEnable");
  } catch (...) {
    Recorder::current = nullptr;
    throw;
  }
}

Trace::~Trace() { Recorder::current = nullptr; }

std::string Trace::finish(int pid) {
  const Cupti& c = recorder_->cupti;
  cuda_check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
  c.check(c.flush(CUPTI_ACTIVITY_FLAG_FLUSH_FORCED), "cuptiActivityFlushAll");
  for (const CUpti_ActivityKind kind :
       {CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL, CUPTI_ACTIVITY_KIND_MEMCPY, CUPTI_ACTIVITY_KIND_MEMSET})
    c.check(c.disable(kind), "cuptiActivityDisable");
  const std::lock_guard lock(recorder_->mutex);
  std::vector<Event>& events = recorder_->events;
  std::stable_sort(events.begin(), events.end(), [](const Event& a, const Event& b) { return a.begin < b.begin; });
  std::string out;
  for (const Event& e : events)
    out += format(
        "{}{{\"ph\": \"X\", \"pid\": {}, \"tid\": {}, \"cat\": \"{}\", \"name\": {}, \"ts\": {:.3f}, \"dur\": {:.3f}}}",
        out.empty() ? "" : ",\n", pid, e.stream, e.kind, json(e.name),
        static_cast<double>(e.begin - events.front().begin) * 1e-3, static_cast<double>(e.end - e.begin) * 1e-3);
  return out;
}

}  // namespace dstrain::gpu
