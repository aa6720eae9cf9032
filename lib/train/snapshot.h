#pragma once
// Snapshot: a copy in host memory of the state that this rank saves, so that training goes on while it is written.

#include <vector>

#include "lib/checkpoint/slab.h"
#include "lib/optim/param_arena.h"

namespace dstrain {

// The state's roles in checkpoints.
constexpr const char* kRoles[] = {"weight", "exp_avg", "exp_avg_sq"};

// A piece's part of one role as the checkpoint names it, in the memory of `flat` (master, exp_avg or exp_avg_sq).
TensorSlab slab_of(const ParamArena::Entry& entry, const char* role, const Tensor& flat);

class Snapshot {
 public:
  // Of `replicas` data ranks that hold the same state this one, `replica`, saves its share (assign_writers). The arena
  // is borrowed.
  Snapshot(const ParamArena& params, int replica, int replicas);

  std::size_t bytes() const { return memory_.bytes(); }
  // Copies the state. The only time that a save takes from training.
  void take(ThreadPool& pool);
  // What this rank writes, in the snapshot's memory.
  std::span<const TensorSlab> slabs() const { return slabs_; }

 private:
  struct Copy {
    const std::byte* from;
    std::byte* to;
    std::size_t bytes;
  };
  Buffer memory_;
  std::vector<TensorSlab> slabs_;
  std::vector<Copy> copies_;  // cut into tiles for the pool
};

}  // namespace dstrain
