#pragma once
// Snapshot: a copy in host memory of the state that this rank saves, so that training goes on while it is written.

#include <optional>
#include <vector>

#include "lib/checkpoint/slab.h"
#include "lib/core/gpu.h"
#include "lib/optim/param_arena.h"

namespace dstrain {

// The state's roles in checkpoints, in the order of Role.
constexpr const char* kRoles[] = {"weight", "exp_avg", "exp_avg_sq"};

// A piece's part of one role as the checkpoint names it; `data` is host memory for the entry's elements.
TensorSlab slab_of(const ParamArena::Entry& entry, Role role, float* data);

class Snapshot {
 public:
  // Of the data ranks that hold the same state this one saves its share (assign_writers). The arena is borrowed. On
  // CUDA the memory is page-locked, and the first `device_buffer` bytes of the copy come by way of memory on the GPU.
  Snapshot(const ParamArena& params, const Groups& groups, std::size_t device_buffer);

  std::size_t bytes() const { return memory_.bytes(); }
  // What it takes of a GPU's memory there; the arena may lie anywhere.
  std::size_t device_bytes() const { return staging_bytes_ + held_bytes_; }
  // Copies the state as it is after what `stream` holds so far. On the CPU it is done on return, and that is the only
  // time that a save takes from training. On CUDA it runs on a queue of its own beside the next forward and backward:
  // whoever writes the state next must be made to wait for copied(). REQUIRES: the copy before is complete.
  void take(Stream& stream);
  // Waits until the copy is complete in host memory.
  void wait() const;
  // Throws Error{nonfinite} naming the tensor when a value of the copy is not finite; after wait().
  void require_finite() const;
  // The state itself is no longer needed. Null on the CPU.
  const gpu::Event* copied() const { return gpu_ ? &gpu_->copied : nullptr; }
  // What this rank writes, in the snapshot's memory; complete after wait().
  std::span<const TensorSlab> slabs() const { return slabs_; }

 private:
  struct Part {
    Role role;
    FlatRange range;
    std::byte* to;                   // in host memory
    bool held = false;               // comes by way of the device's buffer
    std::byte* on_device = nullptr;  // its place there
  };
  struct Gpu {
    gpu::Queue queue;
    gpu::Event ready, copied, complete;
    Buffer staging;  // of split masters
    Buffer held;     // the beginning of the copy
  };
  void hold_begin(std::size_t bytes);
  void copy_parts(Stream& stream);

  const ParamArena& params_;
  Buffer memory_;
  std::vector<TensorSlab> slabs_;
  std::vector<Part> parts_;
  std::size_t staging_bytes_ = 0, held_bytes_ = 0;
  std::optional<Gpu> gpu_;
};

}  // namespace dstrain
