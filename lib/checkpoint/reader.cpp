#include "lib/checkpoint/reader.h"

#include <utility>

#include "lib/checkpoint/names.h"
#include "lib/comm/agree.h"

namespace dstrain {

namespace {

constexpr std::uint64_t kLargestManifest = 1ull << 30;

// A checkpoint that a newer build wrote is good: to go on from an older one would lose its steps, and replace it.
void refuse_newer(const Files& files, const std::string& path) {
  std::string text;
  try {
    text = read_file(files, join_path(path, kManifestName), kLargestManifest);
  } catch (const FileError&) {
    return;  // not usable; opening it says why
  }
  const std::int64_t version = format_version(text).value_or(0);
  require(
      version <= kCheckpointVersion, ExitCode::checkpoint,
      "{}: format version {}, this build reads versions {} to {}: a newer build wrote it; use that one, or move the "
      "checkpoint away to go on from an older one",
      join_path(path, kManifestName), version, kOldestVersion, kCheckpointVersion);
}

}  // namespace

Checkpoint Checkpoint::open_shared(const Files& files, const std::string& path, int rank, int ranks, ThreadPool* pool) {
  Checkpoint checkpoint;
  checkpoint.files_ = &files;
  checkpoint.path_ = path;
  const std::string name = join_path(path, kManifestName);
  try {
    checkpoint.manifest_ = parse_manifest(read_file(files, name, kLargestManifest), name);
    const auto step = step_of(path.substr(path.rfind('/') + 1));
    require(!step || *step == checkpoint.state().step, ExitCode::checkpoint, "{}: the manifest is of step {}", name,
            checkpoint.state().step);
    const auto& shards = checkpoint.manifest_.shards;
    for (const std::string& file : files.list(path)) {
      bool known = !file.starts_with("rank_") || !file.ends_with(".h5");
      for (const ShardRecord& s : shards) known = known || s.file == file;
      require(known, ExitCode::checkpoint, "{}: a shard that the manifest does not know", join_path(path, file));
    }
    // Shards and blocks are numbered, and dealt out to the ranks. What one rank finds, all learn.
    std::size_t before = 0;
    const auto n = static_cast<std::size_t>(ranks);
    for (std::size_t i = static_cast<std::size_t>(rank); i < shards.size(); i += n)
      check_shard_size(files, join_path(path, shards[i].file), shards[i]);
    for (const ShardRecord& s : shards) {
      const std::size_t first = (static_cast<std::size_t>(rank) + n - before % n) % n;
      check_shard_blocks(files, join_path(path, s.file), s, first, n, pool);
      before += s.blocks.size();
    }
  } catch (const FileError& e) {
    fail(ExitCode::checkpoint, "{}", e.what());
  }
  checkpoint.shards_.resize(checkpoint.manifest_.shards.size());
  return checkpoint;
}

Checkpoint Checkpoint::open(const Files& files, const std::string& path) {
  return open_shared(files, path, 0, 1, nullptr);
}

void Checkpoint::read(const TensorSlab& slab) {
  slab.validate();
  if (slab.extent.numel() == 0) return;
  const TensorRecord* tensor = manifest_.find(slab.name, slab.role);
  require(tensor != nullptr, ExitCode::checkpoint, "{}: there is no {} of {}", path_, slab.role, slab.name);
  require(tensor->shape == slab.global, ExitCode::checkpoint, "{}: {} of {} has shape {}, this model wants {}", path_,
          slab.role, slab.name, tensor->shape.to_string(), slab.global.to_string());
  Index found = 0;
  for (const EntryRecord& entry : tensor->entries) {
    bool apart = false;
    for (int i = 0; i < slab.global.rank(); ++i)
      apart = apart || entry.offset[i] + entry.extent[i] <= slab.offset[i] ||
              slab.offset[i] + slab.extent[i] <= entry.offset[i];
    if (apart) continue;
    auto& shard = shards_[static_cast<std::size_t>(entry.shard)];
    if (!shard) {
      const std::string& file = manifest_.shards[static_cast<std::size_t>(entry.shard)].file;
      shard = std::make_unique<Hdf5File>(Hdf5File::open(*files_, join_path(path_, file), ExitCode::checkpoint));
    }
    found += read_entry(*shard, entry, slab);
  }
  check(found == slab.extent.numel(), "{}: {} of {}: {} of {} elements found", path_, slab.role, slab.name, found,
        slab.extent.numel());
}

Checkpoint open_together(const Files& files, const std::string& path, ProcessGroup& group, ThreadPool* pool) {
  Agreement agreement(group);
  Checkpoint opened;
  agreement.together([&] { opened = Checkpoint::open_shared(files, path, agreement.rank(), agreement.size(), pool); });
  return opened;
}

std::optional<Checkpoint> open_newest(const Files& files, const std::string& directory, ProcessGroup& group,
                                      const std::function<void(const std::string&)>& report, ThreadPool* pool) {
  Agreement agreement(group);
  // Rank 0's listing counts: others may see a network file system later or earlier.
  std::string listed;
  agreement.together([&] {
    if (agreement.rank() != 0) return;
    for (const Index step : list_steps(files, directory)) {
      refuse_newer(files, join_path(directory, step_name(step)));
      listed.append(step_name(step)).append("\n");
    }
  });
  listed = agreement.broadcast(listed);
  std::size_t tried = 0;
  for (std::size_t at = 0; at < listed.size(); ++tried) {
    const std::size_t end = listed.find('\n', at);
    const std::string name = listed.substr(at, end - at);
    at = end + 1;
    std::optional<Checkpoint> opened;
    try {
      agreement.together([&] {
        opened = Checkpoint::open_shared(files, join_path(directory, name), agreement.rank(), agreement.size(), pool);
      });
      return opened;
    } catch (const Error& e) {
      // What this machine is short of says nothing of the checkpoint: an older one would lose steps.
      if (e.code() != ExitCode::checkpoint) throw;
      report(format("{} is not usable: {}", name, e.what()));
    }
  }
  require(tried == 0, ExitCode::checkpoint, "{}: none of {} checkpoints is usable", directory, tried);
  return std::nullopt;
}

}  // namespace dstrain
