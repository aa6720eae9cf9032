#pragma once
// CheckpointWriter: the save protocol of FORMAT.md.

#include <set>
#include <span>
#include <string>
#include <vector>

#include "lib/checkpoint/manifest.h"
#include "lib/checkpoint/slab.h"
#include "lib/comm/agree.h"
#include "lib/core/files.h"

namespace dstrain {

struct SaveResult {
  std::string path;                   // of the checkpoint
  std::uint64_t bytes = 0;            // of all shards
  std::vector<std::string> warnings;  // the save stands, but old checkpoints could not be deleted; rank 0 only
};

class CheckpointWriter {
 public:
  // `directory` holds the checkpoints (names.h). `group` has all ranks, its poster is the thread that calls save().
  // `keep`: checkpoints to keep, at least 1; the newest two that are verified are kept in any case. `files` and `group`
  // are borrowed. `readback`: before a checkpoint counts, every shard is read again by another rank, of another host
  // where there is one, and compared with the hashes of its writer.
  CheckpointWriter(const Files& files, std::string directory, ProcessGroup& group, Index keep, bool readback = false);

  // Collective. Returns when the checkpoint is durable. `slabs` are what this rank writes; over all ranks they must
  // cover each tensor exactly once. Throws the same Error on all ranks when one of them fails: then nothing new is
  // there, and what was there is untouched. A usable checkpoint of the same state at this step counts as saved; another
  // one of this step is replaced.
  SaveResult save(const CheckpointState& state, std::span<const TensorSlab> slabs);

  // A checkpoint that was verified by loading it.
  void mark_verified(Index step) { verified_.insert(step); }

 private:
  bool saved_already(const CheckpointState& state);
  Manifest write_manifest(const CheckpointState& state, const std::string& partial,
                          const std::vector<std::string>& shards);
  void read_back_peer(const std::vector<std::string>& shards, const std::string& partial);
  void publish(const std::string& partial, const std::string& path);
  void retain(SaveResult& result);
  void discard(const std::string& path);

  const Files& files_;
  std::string directory_;
  Agreement agreement_;
  Index keep_;
  bool readback_;
  std::set<Index> verified_;  // rank 0
};

// Throws Error{write} unless `directory` has room for a checkpoint of `bytes` and a tenth more. It need not exist yet.
void require_free_space(const Files& files, const std::string& directory, std::uint64_t bytes);

}  // namespace dstrain
