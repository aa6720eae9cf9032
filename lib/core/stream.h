#pragma once
// Stream: what an op needs to run. CPU streams run at once, in the caller; CUDA streams enqueue.

#include <cstddef>
#include <memory>
#include <span>
#include <string>

#include "lib/core/arena.h"
#include "lib/core/device.h"
#include "lib/core/gpu.h"
#include "lib/core/ledger.h"
#include "lib/core/thread_pool.h"
#include "lib/core/whereabouts.h"

namespace dstrain {

// Who computes attention on CUDA. automatic: cuDNN for bf16 where it can, our own kernels elsewhere and, on a Hopper,
// for gradients that need not be deterministic: a rule of what the op is alone, printed at start.
enum class AttentionChoice : unsigned char { automatic, cudnn, native };

// What a job lets its ops do.
struct ComputeSettings {
  bool deterministic =
      true;           // the same bits run after run (design.md, "same bits"); false: the faster where it differs
  bool tf32 = false;  // CUDA matmuls of float32 may round their inputs to TF32
  AttentionChoice attention = AttentionChoice::automatic;
  // An op that meets a new shape may time its alternatives, wait for the device and leave any values in its outputs.
  // Off: the heuristics' first answer that the settings allow, unless `tuned` names one.
  bool tune = false;
  std::string
      tuned;  // choices of an earlier run, as KernelState::tuned() gave them; lines for other hardware are ignored
};

// What the kernels of one device keep from launch to launch: library handles, plans, measured choices. Each device's
// kernels define their own and make it when first needed.
class KernelState {
 public:
  virtual ~KernelState() = default;
  // Measured choices as text, one a line: what ComputeSettings::tuned takes.
  virtual std::string tuned() const = 0;
  // The libraries and kernels that the launches so far have used, one a line, for people.
  virtual std::string fast_paths() const = 0;
};

// What is being computed, for error messages and traces.
struct Place {
  int layer = -1;  // index in the model; -1: none
  int micro_batch = -1;
  const char* phase = "";  // "forward", "backward", "reduce", "optimizer"
};

class Stream;

// Sees each op before and after its launch.
class OpObserver {
 public:
  virtual ~OpObserver() = default;
  virtual void before(Stream& stream, const char* op, const Cost& cost) = 0;
  // `outputs` are the tensors that the op wrote.
  virtual void after(Stream& stream, const char* op, std::span<const Tensor> outputs) = 0;
};

class Stream {
 public:
  // `device` is where ops run; `target`, cpu or cuda, is whose workspace a dry stream counts. `pool` and `workspace`
  // are borrowed and may be null on a dry stream; `ledger` is borrowed and may be null. `queue`, borrowed, is needed
  // on Device::cuda alone.
  Stream(Device device, Device target, ThreadPool* pool, Arena* workspace, Ledger* ledger, gpu::Queue* queue = nullptr)
      : device_(device), target_(target), pool_(pool), workspace_(workspace), ledger_(ledger), queue_(queue) {}

  Device device() const { return device_; }
  Device target() const { return target_; }
  ThreadPool& pool() const { return *pool_; }
  Arena& workspace() const { return *workspace_; }
  Ledger* ledger() const { return ledger_; }
  void set_ledger(Ledger* ledger) { ledger_ = ledger; }
  gpu::Queue& queue() const { return *queue_; }
  // Waits until everything enqueued so far is done; nothing to do on other devices.
  void synchronize() const {
    if (device_ == Device::cuda) queue_->synchronize();
  }

  const ComputeSettings& settings() const { return settings_; }
  void set_settings(ComputeSettings settings) { settings_ = std::move(settings); }
  KernelState* kernel_state() const { return kernel_state_.get(); }
  std::shared_ptr<KernelState> share_kernel_state() const { return kernel_state_; }
  void set_kernel_state(std::shared_ptr<KernelState> state) { kernel_state_ = std::move(state); }

  // Borrowed; null: nobody watches.
  OpObserver* observer() const { return observer_; }
  void set_observer(OpObserver* observer) { observer_ = observer; }
  // CUDA: multiprocessors that matmuls leave to other kernels, say those of communication, that run beside them. A
  // kernel that counts on all of them would wait for its last tiles.
  int reserved_multiprocessors() const { return reserved_multiprocessors_; }
  void reserve_multiprocessors(int count) { reserved_multiprocessors_ = count; }
  const Place& place() const { return place_; }
  void set_place(const Place& place) {
    place_ = place;
    if (whereabouts_) whereabouts_->place(place.layer, place.micro_batch, place.phase);
  }
  // Where the thread that uses this stream says what it does; borrowed, null: nowhere.
  Whereabouts* whereabouts() const { return whereabouts_; }
  void set_whereabouts(Whereabouts* whereabouts) { whereabouts_ = whereabouts; }

 private:
  Device device_;
  Device target_;
  ThreadPool* pool_;
  Arena* workspace_;
  Ledger* ledger_;
  gpu::Queue* queue_;
  ComputeSettings settings_;
  std::shared_ptr<KernelState> kernel_state_;
  OpObserver* observer_ = nullptr;
  Place place_;
  Whereabouts* whereabouts_ = nullptr;
  int reserved_multiprocessors_ = 0;
};

}  // namespace dstrain
