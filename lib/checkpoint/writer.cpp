#include "lib/checkpoint/writer.h"

#include <utility>

#include "lib/checkpoint/names.h"
#include "lib/checkpoint/reader.h"
#include "lib/checkpoint/shard.h"

namespace dstrain {

CheckpointWriter::CheckpointWriter(const Files& files, std::string directory, ProcessGroup& group, Index keep,
                                   bool readback)
    : files_(files), directory_(std::move(directory)), agreement_(group), keep_(keep), readback_(readback) {
  check(keep >= 1, "checkpoint.keep: {}", keep);
}

void require_free_space(const Files& files, const std::string& directory, std::uint64_t bytes) {
  std::string existing = directory;
  while (!files.exists(existing) && existing != "." && existing != "/") existing = parent_path(existing);
  const std::uint64_t free = files.available(existing), needed = bytes + bytes / 10;
  require(free >= needed, ExitCode::write, "{}: a checkpoint needs {} bytes, {} are free", directory, needed, free);
}

SaveResult CheckpointWriter::save(const CheckpointState& state, std::span<const TensorSlab> slabs) {
  const bool leads = agreement_.rank() == 0;
  SaveResult result;
  result.path = join_path(directory_, step_name(state.step));
  const std::string partial = result.path + kPartialSuffix;

  Index bytes = 0;
  for (const TensorSlab& slab : slabs) bytes += slab.extent.numel() * static_cast<Index>(sizeof(float));
  bytes = agreement_.sum(bytes);

  bool started = false;
  try {
    Index done = 0;
    agreement_.together([&] {
      if (!leads) return;
      make_durable_directory(files_, directory_);
      if (saved_already(state)) {
        done = 1;
        return;
      }
      try {
        remove_leftovers(files_, directory_);
      } catch (const Error& e) {  // only this step's are in the way
        result.warnings.push_back(format("what crashed saves have left stays: {}", e.what()));
        remove_tree(files_, partial);
      }
      require_free_space(files_, directory_, static_cast<std::uint64_t>(bytes));
      files_.make_directory(partial);
    });
    if (agreement_.sum(done) > 0) return result;
    started = true;
    WrittenShard written;
    agreement_.together([&] { written = write_shard(files_, partial, agreement_.rank(), state.step, slabs); });
    const std::vector<std::string> shards = agreement_.gather(to_text(written.record, written.tensors));
    if (readback_) read_back_peer(shards, partial);
    agreement_.together([&] {
      if (!leads) return;
      const Manifest manifest = write_manifest(state, partial, shards);
      for (const ShardRecord& s : manifest.shards) result.bytes += s.size;
      publish(partial, result.path);
    });
  } catch (const Error& e) {
    if (leads && started && e.code() != ExitCode::lost) {
      try {
        remove_tree(files_, partial);
      } catch (const Error&) {  // the next save tries again; the first error is the one to tell
      }
    }
    // Reading back what was written is part of writing.
    const bool reading = e.code() == ExitCode::data || e.code() == ExitCode::checkpoint;
    throw Error(reading ? ExitCode::write : e.code(), format("checkpoint of step {}: {}", state.step, e.what()),
                e.shared());
  }
  if (leads) {
    verified_.insert(state.step);
    retain(result);
  }
  result.bytes = static_cast<std::uint64_t>(agreement_.sum(static_cast<Index>(result.bytes)));
  return result;
}

bool CheckpointWriter::saved_already(const CheckpointState& state) {
  const std::string path = join_path(directory_, step_name(state.step));
  if (!files_.exists(path)) return false;
  try {
    const Checkpoint there = Checkpoint::open(files_, path);
    if (there.state() == state) return true;
  } catch (const Error&) {  // not usable: it will be replaced
  }
  return false;
}

void CheckpointWriter::read_back_peer(const std::vector<std::string>& shards, const std::string& partial) {
  Manifest all;
  for (const std::string& text : shards) add_shard(all, text);
  std::string records;
  for (const ShardRecord& s : all.shards) records.append(to_text(s, {})).append("\n");
  records = agreement_.broadcast(records);
  Manifest known;
  for (std::size_t at = 0; at < records.size();) {
    const std::size_t end = records.find('\n', at);
    add_shard(known, records.substr(at, end - at));
    at = end + 1;
  }
  // Half the ranks further on: on another host, where there are two or more.
  const auto n = static_cast<std::size_t>(agreement_.size());
  const ShardRecord& peer = known.shards[(static_cast<std::size_t>(agreement_.rank()) + (n + 1) / 2) % n];
  agreement_.together([&] { read_back(files_, join_path(partial, peer.file), peer); });
}

Manifest CheckpointWriter::write_manifest(const CheckpointState& state, const std::string& partial,
                                          const std::vector<std::string>& shards) {
  Manifest manifest;
  manifest.state = state;
  for (const std::string& text : shards) add_shard(manifest, text);
  merge_tensors(manifest);
  const std::string text = to_text(manifest);
  const auto file = files_.open(join_path(partial, kManifestName), OpenMode::create);
  file->pwrite(std::as_bytes(std::span(text)), 0);
  file->sync();
  file->close();
  files_.sync_directory(partial);
  return manifest;
}

void CheckpointWriter::publish(const std::string& partial, const std::string& path) {
  const bool replaces = files_.exists(path);
  if (replaces) files_.rename(path, path + kTrashSuffix);
  try {
    files_.rename(partial, path);
  } catch (const Error&) {
    if (replaces) files_.rename(path + kTrashSuffix, path);
    throw;
  }
  files_.sync_directory(directory_);
}

void CheckpointWriter::discard(const std::string& path) {
  const std::string trash = path + kTrashSuffix;
  if (files_.exists(path)) {
    remove_tree(files_, trash);
    files_.rename(path, trash);
    files_.sync_directory(directory_);  // or a loss of power may leave what is half removed under its name
  }
  remove_tree(files_, trash);
}

void CheckpointWriter::retain(SaveResult& result) {
  try {
    remove_tree(files_, result.path + kTrashSuffix);  // what was replaced
    Index position = 0;
    int verified = 0;
    for (const Index step : list_steps(files_, directory_)) {
      const std::string path = join_path(directory_, step_name(step));
      const bool spare = position++ >= keep_;
      if (verified < 2 && !verified_.contains(step)) {
        try {
          Checkpoint::open(files_, path);
          verified_.insert(step);
        } catch (const Error& e) {
          result.warnings.push_back(e.what());
        }
      }
      if (verified >= 2 && spare) {
        discard(path);
        verified_.erase(step);
      }
      if (verified_.contains(step)) ++verified;
    }
  } catch (const Error& e) {
    result.warnings.push_back(format("old checkpoints stay: {}", e.what()));
  }
}

}  // namespace dstrain
