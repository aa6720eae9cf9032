#include "lib/train/inference.h"

#include <utility>

#include "lib/checkpoint/names.h"
#include "lib/comm/agree.h"
#include "lib/config/resolve.h"
#include "lib/core/hash.h"
#include "lib/train/checkpointer.h"
#include "lib/train/plan.h"
#include "lib/train/run_directory.h"

namespace dstrain {

RunPath run_path(const Files& files, std::string path) {
  while (path.size() > 1 && path.ends_with('/')) path.pop_back();
  const std::string parent = parent_path(path);
  if (files.exists(join_path(path, kManifestName))) return {parent_path(parent), path};
  return {path, ""};
}

Checkpoint open_run(const Files& files, const std::string& path, ProcessGroup& group,
                    const std::function<void(const std::string&)>& report) {
  const RunPath where = run_path(files, path);
  if (!where.checkpoint.empty()) return open_together(files, where.checkpoint, group);
  std::optional<Checkpoint> newest = open_newest(files, checkpoints_directory(where.run), group, report);
  require(newest.has_value(), ExitCode::checkpoint, "{}: no checkpoint", path);
  return std::move(*newest);
}

Config config_of_run(const Files& files, const std::string& path, const std::vector<std::string>& overrides,
                     int ranks) {
  const RunPath where = run_path(files, path);
  const std::string job = RunDirectory(where.run).job();
  require(files.exists(job), ExitCode::usage, "{}: no run here: {} does not exist", path, job);
  const Loaded loaded = load_config(files, job, overrides);
  const ParallelConfig& p = loaded.config.parallel;
  if (mesh_sizes(p).ranks() == ranks) return resolve(loaded, ranks);
  std::vector<std::string> flat{"parallel.tensor=1", "parallel.pipeline=1", "parallel.data=0", "parallel.expert=1"};
  flat.push_back(format("training.global_batch_size={}", ranks * loaded.config.training.micro_batch_size));
  flat.insert(flat.end(), overrides.begin(), overrides.end());
  return resolve(load_config(files, job, flat), ranks);
}

std::optional<Tokenizer> tokenizer_of(const Files& files, const Config& config, const std::string& named) {
  const std::string& own = config.data.tokenizer;
  if (named.empty()) return own.empty() ? std::nullopt : std::optional(Tokenizer::load(files, own));
  Tokenizer tokenizer = Tokenizer::load(files, named);
  if (!own.empty() && files.exists(own)) {
    const std::uint64_t hash = Tokenizer::load(files, own).hash();
    require(hash == tokenizer.hash(), ExitCode::usage,
            "--tokenizer: {} has hash {}, the job's data.tokenizer {} has {}", named, hex(tokenizer.hash()), own,
            hex(hash));
  }
  return tokenizer;
}

Index load_run(const Files& files, const std::string& path, World& world, Engine& engine,
               const std::function<void(const std::string&)>& report) {
  const Groups groups = make_groups(world, engine.mesh(), Poster::checkpoint);
  Checkpoint checkpoint = open_run(files, path, *groups.control, report);
  Agreement(*groups.control).together([&] {
    std::vector<float> values;
    const std::string module = format("model.layers.{}.", engine.config().model.num_hidden_layers);
    for (const ParamArena::Entry& entry : engine.params().entries()) {
      if (entry.range.size() == 0) continue;
      values.resize(static_cast<std::size_t>(entry.range.size()));
      const TensorSlab slab = slab_of(entry, Role::weight, values.data());
      // transformers' config.json names modules of multi-token prediction that its files do not have.
      require(!slab.name.starts_with(module) || checkpoint.manifest().find(slab.name, slab.role) != nullptr,
              ExitCode::checkpoint,
              "{}: there is no weight of {}: the run has no multi-token prediction; model.num_nextn_predict_layers=0 "
              "goes without",
              checkpoint.path(), slab.name);
      checkpoint.read(slab);
      engine.params().write(engine.stream(), Role::weight, entry.range, values.data());
    }
  });
  return checkpoint.state().step;
}

}  // namespace dstrain
