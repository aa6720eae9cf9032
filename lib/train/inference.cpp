#include "lib/train/inference.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "lib/checkpoint/agree.h"
#include "lib/checkpoint/names.h"
#include "lib/checkpoint/reader.h"
#include "lib/config/resolve.h"
#include "lib/core/transfer.h"
#include "lib/layers/host_batch.h"
#include "lib/train/checkpointer.h"
#include "lib/train/plan.h"
#include "lib/train/run_directory.h"

namespace dstrain {

namespace {

// RUN for RUN, RUN/checkpoints/step_N and RUN/checkpoints/step_N/.
struct RunPath {
  std::string run;
  std::string checkpoint;  // empty: the newest
};
RunPath run_path(const Files& files, std::string path) {
  while (path.size() > 1 && path.ends_with('/')) path.pop_back();
  const std::string parent = parent_path(path);
  if (files.exists(join_path(path, kManifestName))) return {parent_path(parent), path};
  return {path, ""};
}

}  // namespace

Config config_of_run(const Files& files, const std::string& path, const std::vector<std::string>& overrides,
                     int ranks) {
  const RunPath where = run_path(files, path);
  const std::string job = RunDirectory(where.run).job();
  require(files.exists(job), ExitCode::usage, "{}: no run here: {} does not exist", path, job);
  const Loaded loaded = load_config(files, job, overrides);
  const ParallelConfig& p = loaded.config.parallel;
  if (mesh_sizes(p).ranks() == ranks) return resolve(loaded, ranks);
  std::vector<std::string> flat{"parallel.tensor=1", "parallel.pipeline=1", format("parallel.data={}", ranks)};
  flat.push_back(format("training.global_batch_size={}", ranks * loaded.config.training.micro_batch_size));
  flat.insert(flat.end(), overrides.begin(), overrides.end());
  return resolve(load_config(files, job, flat), ranks);
}

Index load_run(const Files& files, const std::string& path, World& world, Engine& engine,
               const std::function<void(const std::string&)>& report) {
  const Groups groups = make_groups(world, engine.mesh(), Poster::checkpoint);
  const RunPath where = run_path(files, path);
  std::optional<Checkpoint> checkpoint;
  if (where.checkpoint.empty())
    checkpoint = open_newest(files, checkpoints_directory(where.run), *groups.control, report);
  else
    Agreement(*groups.control).together([&] { checkpoint = Checkpoint::open(files, where.checkpoint); });
  require(checkpoint.has_value(), ExitCode::checkpoint, "{}: no checkpoint", path);
  Agreement(*groups.control).together([&] {
    std::vector<float> values;
    for (const ParamArena::Entry& entry : engine.params().entries()) {
      if (entry.range.size() == 0) continue;
      values.resize(static_cast<std::size_t>(entry.range.size()));
      checkpoint->read(slab_of(entry, Role::weight, values.data()));
      engine.params().write(engine.stream(), Role::weight, entry.range, values.data());
    }
  });
  return checkpoint->state().step;
}

Generator::Generator(const Config& config, Engine& engine) : config_(config), engine_(engine) {
  check(engine.mesh().ranks() == 1, "a generator on {} ranks", engine.mesh().ranks());
  const StageModel& model = engine.stage().model();
  const Device device = engine.stream().device();
  const DType dtype = engine.params().compute().dtype;
  const Index positions = config.training.sequence_length, columns = model.head->weight().shape[0];
  const Shape shape{1, positions, model.kv_heads, model.head_dim};
  const std::size_t bytes = static_cast<std::size_t>(shape.numel()) * size_of(dtype);
  cache_memory_ = Buffer("key-value cache", device, 2 * bytes * static_cast<std::size_t>(model.blocks));
  for (Index block = 0; block < model.blocks; ++block) {
    std::byte* at = cache_memory_.data() + 2 * bytes * static_cast<std::size_t>(block);
    cache_.keys.emplace_back(at, dtype, device, shape);
    cache_.values.emplace_back(at + bytes, dtype, device, shape);
  }
  logits_memory_ = Buffer("logits", device, static_cast<std::size_t>(columns) * sizeof(float));
  logits_.resize(static_cast<std::size_t>(columns));
}

std::span<const float> Generator::forward(std::span<const std::int32_t> tokens) {
  const auto n = static_cast<Index>(tokens.size());
  HostBatch host(1, n);
  host.tokens.assign(tokens.begin(), tokens.end());
  for (std::int32_t& p : host.positions) p += static_cast<std::int32_t>(cache_.length);
  const Batch batch = host.view();
  Stage& stage = engine_.stage();
  Stream& stream = engine_.stream();
  stage.forward(stream, 0, batch, {.mode = Mode::decode, .cache = &cache_});
  const Tensor logits(logits_memory_.data(), DType::f32, stream.device(), {1, static_cast<Index>(logits_.size())});
  stage.logits(stream, stage.output().slice(0, n - 1, n), logits);
  download(stream, logits_.data(), logits);
  stream.synchronize();
  stage.release(0);
  cache_.length += n;
  return {logits_.data(), static_cast<std::size_t>(config_.model.vocab_size)};
}

std::int32_t Generator::sample(std::span<const float> logits, const SamplingOptions& options, Index position) const {
  // NaN has no place in an order.
  for (std::size_t i = 0; i < logits.size(); ++i)
    require(!std::isnan(logits[i]), ExitCode::nonfinite, "token {} of the output: the logit of id {} is not a number",
            position, i);
  if (options.temperature == 0)
    return static_cast<std::int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
  std::vector<std::int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  const auto better = [&](std::int32_t a, std::int32_t b) {
    const float x = logits[static_cast<std::size_t>(a)], y = logits[static_cast<std::size_t>(b)];
    return x != y ? x > y : a < b;
  };
  const std::size_t keep =
      options.top_k > 0 ? std::min(order.size(), static_cast<std::size_t>(options.top_k)) : order.size();
  std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(keep), order.end(), better);
  order.resize(keep);
  std::vector<double> weights;
  for (const std::int32_t id : order)
    weights.push_back(std::exp((static_cast<double>(logits[static_cast<std::size_t>(id)]) -
                                static_cast<double>(logits[static_cast<std::size_t>(order[0])])) /
                               options.temperature));
  const double total = std::accumulate(weights.begin(), weights.end(), 0.0);
  double at = total * static_cast<double>(
                          uniform(philox(options.seed, "sampling")(0, static_cast<std::uint64_t>(position))[0]));
  for (std::size_t i = 0; i < order.size(); ++i)
    if ((at -= weights[i]) <= 0) return order[i];
  return order.back();
}

void Generator::run(std::span<const std::int32_t> prompt, const SamplingOptions& options, std::int32_t end_of_document,
                    const std::function<bool(std::int32_t)>& emit) {
  const Index capacity = config_.training.sequence_length;
  require(!prompt.empty(), ExitCode::usage, "the prompt holds no token");
  require(static_cast<Index>(prompt.size()) < capacity, ExitCode::usage, "the prompt has {} tokens, room is for {}",
          prompt.size(), capacity - 1);
  cache_.length = 0;
  std::span<const float> logits = forward(prompt);
  for (Index i = 0; i < options.tokens; ++i) {
    const std::int32_t token = sample(logits, options, i);
    if (token == end_of_document || !emit(token) || cache_.length >= capacity) return;
    if (i + 1 < options.tokens) logits = forward({&token, 1});
  }
}

}  // namespace dstrain
