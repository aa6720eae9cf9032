#pragma once
// Reading checkpoints, into any layout.

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "lib/checkpoint/manifest.h"
#include "lib/checkpoint/shard.h"
#include "lib/checkpoint/slab.h"
#include "lib/comm/process_group.h"
#include "lib/core/files.h"

namespace dstrain {

// One complete checkpoint, open for reading by one thread.
class Checkpoint {
 public:
  // Verifies everything: manifest, sizes, every block's hash. Throws Error{checkpoint} naming file and reason.
  static Checkpoint open(const Files& files, const std::string& path);

  const std::string& path() const { return path_; }
  const CheckpointState& state() const { return manifest_.state; }
  int world() const { return static_cast<int>(manifest_.shards.size()); }
  const Manifest& manifest() const { return manifest_; }
  bool has(const std::string& name, const std::string& role) const { return manifest_.find(name, role) != nullptr; }

  // Fills slab.data from whatever shards hold parts of it, and reads no others: of each part the chunks that lie in the
  // slab, some MiB at a time. Throws Error{checkpoint} when the tensor is missing or has
  // another shape.
  void read(const TensorSlab& slab);

 private:
  friend Checkpoint open_together(const Files&, const std::string&, ProcessGroup&, ThreadPool*);
  friend std::optional<Checkpoint> open_newest(const Files&, const std::string&, ProcessGroup&,
                                               const std::function<void(const std::string&)>&, ThreadPool*);
  // The manifest; of the shards' sizes and blocks, those that fall to `rank` of `ranks`.
  static Checkpoint open_shared(const Files& files, const std::string& path, int rank, int ranks, ThreadPool* pool);

  const Files* files_ = nullptr;
  std::string path_;
  Manifest manifest_;
  std::vector<std::unique_ptr<Hdf5File>> shards_;  // opened when first read
};

// Collective over `group`: the checkpoint at `path`, which the ranks verify together. Throws Error{checkpoint}, on all.
Checkpoint open_together(const Files& files, const std::string& path, ProcessGroup& group, ThreadPool* pool = nullptr);

// Collective over `group`: the newest checkpoint in `directory` that is whole, the same on all ranks, which share the
// verification; nothing when there is none at all. One that is not is reported, on every rank, in a line with the
// reason, and the next older is tried. Throws Error{checkpoint} when there are some and none is usable, and when a
// newer build wrote one. Blocks are hashed on the threads of `pool`; null: on this one.
std::optional<Checkpoint> open_newest(const Files& files, const std::string& directory, ProcessGroup& group,
                                      const std::function<void(const std::string&)>& report,
                                      ThreadPool* pool = nullptr);

}  // namespace dstrain
