#pragma once
// manifest.jsonl, as a value. See FORMAT.md.

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "lib/checkpoint/guard_state.h"
#include "lib/core/shape.h"
#include "lib/mesh/mesh.h"

namespace dstrain {

constexpr int kCheckpointVersion = 1;  // written
constexpr int kOldestVersion = 1;      // read
constexpr std::size_t kLongestName = 1024;
constexpr std::uint64_t kHashBlock = 64ull << 20;

// What a run needs to go on, beside its tensors.
struct CheckpointState {
  Index step = 0;            // steps finished
  Index optimizer_step = 0;  // updates applied: less than `step` when updates were skipped
  std::uint64_t seed = 0;
  Index next_sample = 0;  // the data cursor: first global sample not trained on
  Index tokens = 0;       // trained on
  std::string config_hash;
  std::string data_hash;  // of the tokens trained on; "" in checkpoints of builds that did not write it
  MeshSizes mesh;
  GuardState guard;  // empty in checkpoints of builds that did not write it

  friend bool operator==(const CheckpointState&, const CheckpointState&) = default;
};

struct ShardRecord {
  std::string file;
  std::uint64_t size = 0;
  std::vector<std::uint64_t> blocks;  // XXH3 of each kHashBlock bytes, the last one shorter
};

struct EntryRecord {
  int shard = 0;
  std::string dataset;
  Shape offset, extent;     // in the tensor's axes
  bool transposed = false;  // order F
};

struct TensorRecord {
  std::string name, role;
  Shape shape;
  std::vector<EntryRecord> entries;
};

struct Manifest {
  CheckpointState state;
  std::vector<ShardRecord> shards;    // one a rank of the run that saved
  std::vector<TensorRecord> tensors;  // sorted by (role, name)

  const TensorRecord* find(std::string_view name, std::string_view role) const;
};

// Throws Error{bug} unless the entries of each tensor are disjoint, inside it and cover it.
std::string to_text(const Manifest& manifest);
// Throws Error{checkpoint}, `where` first, for anything but what to_text writes: checksum, version, geometry, names.
Manifest parse_manifest(const std::string& text, const std::string& where);
// The version of a manifest whose checksum is right, be it one that this build reads or not.
std::optional<std::int64_t> format_version(const std::string& text);

// What one rank tells rank 0: its shard and its parts of tensors (entries of shard `rank`). The text is a JSON object.
std::string to_text(const ShardRecord& shard, const std::vector<TensorRecord>& tensors);
void add_shard(Manifest& manifest, const std::string& text);
// Sorts and merges the tensors of all shards. Throws Error{bug} when two ranks disagree about a shape.
void merge_tensors(Manifest& manifest);

}  // namespace dstrain
