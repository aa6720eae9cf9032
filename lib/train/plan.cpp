#include "lib/train/plan.h"

#include <algorithm>
#include <numeric>

#include "lib/pipeline/schedule.h"
#include "lib/pipeline/simulate.h"
#include "lib/train/decode_memory.h"
#include "lib/train/evaluate.h"
#include "lib/train/snapshot.h"

namespace dstrain {

MeshSizes mesh_sizes(const ParallelConfig& p) {
  return {.tensor = static_cast<int>(p.tensor),
          .context = static_cast<int>(p.context),
          .data = static_cast<int>(p.data),
          .pipeline = static_cast<int>(p.pipeline),
          .expert = static_cast<int>(p.expert)};
}

namespace {

Batch dry_batch(const StepShape& plan, bool document_mask, Index mtp_depths = 0) {
  static std::byte nothing;  // an address for tensors that nobody reads
  const auto tensor = [&](Index n, DType t) { return Tensor(&nothing, t, Device::dry, {n}); };
  const Index rows = plan.micro_batch_size * plan.length;
  return {.batch = plan.micro_batch_size,
          .length = plan.length,
          .tokens = tensor(rows, DType::i32),
          .targets = tensor(rows, DType::i32),
          .positions = tensor(rows, DType::i32),
          .sample_ids = tensor(plan.micro_batch_size, DType::i64),
          .row_sample_ids = tensor(rows, DType::i64),
          .loss_weights = tensor(rows, DType::f32),
          .mtp_targets = mtp_depths > 0 ? tensor(mtp_depths * rows, DType::i32).view({mtp_depths, rows}) : Tensor(),
          .mtp_weights = mtp_depths > 0 ? tensor(mtp_depths * rows, DType::f32).view({mtp_depths, rows}) : Tensor(),
          .first_keys = document_mask ? tensor(rows, DType::i32) : Tensor()};
}

}  // namespace

RankPlan plan_rank(const Config& config, const Mesh& mesh, int rank, Device target, EngineUse use, Index cache_length) {
  const auto world = World::dry(rank, mesh.ranks());
  Engine engine(config, *world, mesh, Device::dry, target, 1, {}, use);
  const StepShape batches = step_shape(config);
  const std::vector<Batch> micro_batches(
      static_cast<std::size_t>(batches.micro_batches),
      dry_batch(batches, config.data.document_mask,
                use == EngineUse::training ? config.model.num_nextn_predict_layers : 0));
  RankPlan plan{
      .rank = rank,
      .at = mesh.coordinates(rank),
      .layers = partition(
          config.model, batches.length,
          static_cast<int>(config.parallel.pipeline))[static_cast<std::size_t>(mesh.coordinates(rank).pipeline)],
      .parameters = engine.params().parameters(),
      .spread = engine.params().spread_parameters()};
  if (use == EngineUse::training) {
    engine.count_into(&plan.step);
    const std::vector<double> one(static_cast<std::size_t>(config.model.num_nextn_predict_layers), 1.0);
    engine.train_step(micro_batches, {1, one}, 0, false);
    engine.count_into(nullptr);
  }
  std::size_t decode_bytes = 0;
  if (use == EngineUse::generation) {
    DecodeMemory memory(engine, batches.micro_batch_size, cache_length);
    KvCache cache = memory.cache(batches.micro_batch_size);
    const Tensor logits = memory.logits(batches.micro_batch_size);
    decode_bytes = memory.bytes();
    engine.decode(dry_batch(batches, true), cache, logits);
    cache.length = cache_length - 1;
    engine.decode(dry_batch({1, batches.micro_batch_size, 1}, true), cache, logits);
  } else {
    engine.evaluate(micro_batches);
    if (use == EngineUse::evaluation) engine.evaluate_samples(micro_batches);
  }
  plan.sizes = engine.used();
  plan.memory = engine.memory();
  if (use == EngineUse::generation) plan.memory.push_back({"key-value cache", decode_bytes});
  if (use != EngineUse::training) return plan;
  const bool host = target == Device::cuda;
  plan.memory.push_back({"batches", loader_bytes(data_plan(config, plan.at, -1, host), batches.length), host});
  const Snapshot snapshot(engine.params(), engine.groups(),
                          static_cast<std::size_t>(config.checkpoint.device_buffer_bytes));
  if (host && snapshot.device_bytes() > 0) plan.memory.push_back({"snapshot on the device", snapshot.device_bytes()});
  plan.memory.push_back({"snapshot", snapshot.bytes(), host});
  return plan;
}

Plan make_plan(const Config& config, Device target) {
  Plan plan{.target = target,
            .mesh = Mesh(mesh_sizes(config.parallel)),
            .shape = step_shape(config),
            .program = train_program(config)};
  std::vector<double> stage_flops;
  Cost total;
  for (int stage = 0; stage < plan.mesh.sizes().pipeline; ++stage)
    for (int tensor = 0; tensor < plan.mesh.sizes().tensor; ++tensor) {
      plan.ranks.push_back(
          plan_rank(config, plan.mesh, plan.mesh.rank_of({.tensor = tensor, .pipeline = stage}), target));
      const RankPlan& rank = plan.ranks.back();
      plan.parameters += rank.parameters + (config.parallel.expert - 1) * rank.spread;
      total += rank.step.total();
      if (tensor == 0) stage_flops.push_back(rank.step.total().flops);
    }
  const double tokens = static_cast<double>(plan.shape.micro_batches * plan.shape.micro_batch_size * plan.shape.length);
  plan.flops_per_token = total.flops / tokens;
  plan.flops_per_token_full = total.flops_full / tokens;
  plan.bubble = simulate(plan.program).bubble;
  // A pipeline goes at its slowest stage's pace: the rest of the others' time is idle too.
  const double slowest = *std::max_element(stage_flops.begin(), stage_flops.end());
  const double mean =
      std::accumulate(stage_flops.begin(), stage_flops.end(), 0.0) / static_cast<double>(stage_flops.size());
  plan.bubble_with_costs = 1 - (1 - plan.bubble) * mean / slowest;
  return plan;
}

}  // namespace dstrain
