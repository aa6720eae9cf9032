#pragma once
// One rank's HDF5 file.

#include <map>
#include <span>
#include <string>
#include <vector>

#include "lib/checkpoint/manifest.h"
#include "lib/checkpoint/slab.h"
#include "lib/core/hdf5.h"
#include "lib/core/thread_pool.h"

namespace dstrain {

struct WrittenShard {
  ShardRecord record;
  std::vector<TensorRecord> tensors;  // one entry each, of this shard
};

// Writes DIRECTORY/rank_r.h5 with the slabs (empty ones left out), reads it back for the hashes, syncs and closes it.
WrittenShard write_shard(const Files& files, const std::string& directory, int rank, Index step,
                         std::span<const TensorSlab> slabs);

// Throws Error{checkpoint} naming file, expected and found size when the shard is missing or of another size.
void check_shard_size(const Files& files, const std::string& path, const ShardRecord& record);
// Compares the hashes of the blocks first, first + step, ... on the threads of `pool` (null: on this one), each through
// a buffer of some MiB; throws Error{checkpoint} naming file and byte range.
void check_shard_blocks(const Files& files, const std::string& path, const ShardRecord& record, std::size_t first = 0,
                        std::size_t step = 1, ThreadPool* pool = nullptr);
// Size and every block, from the device rather than this machine's memory where the system can.
void read_back(const Files& files, const std::string& path, const ShardRecord& record);

// Copies the part of `entry` that lies in `slab` into slab.data and returns the count of elements.
Index read_entry(const Hdf5File& file, const EntryRecord& entry, const TensorSlab& slab);

}  // namespace dstrain
