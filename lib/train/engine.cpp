#include "lib/train/engine.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "kernels/elementwise.h"
#include "lib/model/params.h"
#include "lib/pipeline/schedule.h"

namespace dstrain {

StepShape step_shape(const Config& c) {
  return {.micro_batches = c.training.global_batch_size / (c.parallel.data * c.training.micro_batch_size),
          .micro_batch_size = c.training.micro_batch_size,
          .length = c.training.sequence_length};
}

namespace {

Program job_program(const Config& c, const std::string& schedule) {
  return make_schedule(schedule, static_cast<int>(c.parallel.pipeline), static_cast<int>(step_shape(c).micro_batches));
}

}  // namespace

Program train_program(const Config& c) { return job_program(c, c.parallel.schedule); }

namespace {

StagePlace place_of(const Config& c, const Coordinates& at) {
  const auto stages = static_cast<int>(c.parallel.pipeline);
  return {.layers = partition(c.model, c.training.sequence_length, stages)[static_cast<std::size_t>(at.pipeline)],
          .first = at.pipeline == 0,
          .last = at.pipeline == stages - 1,
          .shard = {at.tensor, static_cast<int>(c.parallel.tensor)}};
}

}  // namespace

Engine::Engine(const Config& config, World& world, const Mesh& mesh, Device device, int threads,
               const EngineSizes& sizes)
    : config_(config),
      mesh_(mesh),
      at_(mesh.coordinates(world.rank())),
      device_(device),
      pool_(device == Device::dry ? nullptr : std::make_unique<ThreadPool>(threads)),
      workspace_("workspace", device, sizes.workspace),
      stream_(device, Device::cpu, pool_.get(), &workspace_, nullptr),
      groups_(make_groups(world, mesh, Poster::compute, config.model.num_key_value_heads)),
      scalars_("scalars", device, 2 * Arena::kAlign),
      train_program_(train_program(config)),
      eval_program_(job_program(config, "forward_only")) {
  const StepShape batches = step_shape(config_);
  const int slots = std::max(slot_count(train_program_, at_.pipeline), slot_count(eval_program_, at_.pipeline));
  stage_ = std::make_unique<Stage>(build_stage(config_.model, place_of(config_, at_)), device, *groups_.tensor, slots,
                                   batches.micro_batch_size * batches.length, sizes.stage);
  params_ = std::make_unique<ParamArena>(stage_->model(), device, config_.parallel.bucket_bytes);
  optimizer_ = std::make_unique<Optimizer>(config_.optimizer, *params_, scalars_);
  result_ = scalars_.allocate({3}, DType::f64);
}

void Engine::initialize(std::uint64_t seed) {
  std::vector<const Param*> params;
  stage_->model().visit([&](Param& p) { params.push_back(&p); });
  pool_->parallel_for(static_cast<std::int64_t>(params.size()),
                      [&](std::int64_t i) { dstrain::initialize(*params[static_cast<std::size_t>(i)], seed); });
  for (const Tensor& t : {params_->gradient(), params_->exp_avg(), params_->exp_avg_sq()})
    launch(stream_, Fill{.y = t});
}

StepResult Engine::gradients(std::span<const Batch> micro_batches, double valid_tokens, bool stop) {
  const Tensor norm = result_.slice(0, 0, 1), loss = result_.slice(0, 1, 2), votes = result_.slice(0, 2, 3);
  launch(stream_, Fill{.y = loss});
  launch(stream_, Fill{.y = votes, .value = stop ? 1.0f : 0.0f});
  execute(train_program_, *stage_, *groups_.pipeline, stream_, micro_batches,
          {.mode = Mode::train,
           .seed = config_.run.seed,
           .loss_scale = static_cast<float>(1.0 / valid_tokens),
           .loss = loss});
  params_->reduce(stream_, groups_);
  optimizer_->squared_norm(stream_, norm);
  // Every tensor rank has computed the loss: one of them counts.
  if (at_.tensor != 0) launch(stream_, Fill{.y = loss});
  if (groups_.replica->size() > 1) groups_.replica->all_reduce(stream_, result_.slice(0, 1, 3));
  if (groups_.model->size() > 1) groups_.model->all_reduce(stream_, result_);
  if (device_ == Device::dry) return {};
  const double* r = result_.as<double>();
  return {.loss = r[1] / valid_tokens,
          .grad_norm = std::sqrt(r[0]),
          .finite = std::isfinite(r[0]) && std::isfinite(r[1]),
          .stop = r[2] > 0};
}

StepResult Engine::train_step(std::span<const Batch> micro_batches, double valid_tokens, double lr, std::int64_t update,
                              bool stop) {
  const StepResult result = gradients(micro_batches, valid_tokens, stop);
  if (result.finite) optimizer_->step(stream_, result_.slice(0, 0, 1), lr, update);
  return result;
}

double Engine::evaluate(std::span<const Batch> micro_batches) {
  const Tensor loss = result_.slice(0, 1, 2);
  launch(stream_, Fill{.y = loss});
  execute(eval_program_, *stage_, *groups_.pipeline, stream_, micro_batches, {.mode = Mode::eval, .loss = loss});
  if (at_.tensor != 0) launch(stream_, Fill{.y = loss});
  if (groups_.replica->size() > 1) groups_.replica->all_reduce(stream_, loss);
  if (groups_.model->size() > 1) groups_.model->all_reduce(stream_, loss);
  return device_ == Device::dry ? 0 : *loss.as<double>();
}

EngineSizes Engine::used() const { return {.stage = stage_->used(), .workspace = workspace_.high_water()}; }

std::vector<MemoryRow> Engine::memory() const {
  const bool dry = device_ == Device::dry;
  const Stage::Sizes s = dry ? stage_->used() : stage_->capacities();
  std::size_t communication = 0;
  for (const auto* group : {&groups_.tensor, &groups_.pipeline, &groups_.replica, &groups_.embedding, &groups_.model,
                            &groups_.kv_replica, &groups_.control})
    if (*group) communication += (*group)->scratch_bytes();
  return {{"weights", params_->weight_bytes()},
          {"gradients", params_->gradient_bytes()},
          {"optimizer", params_->optimizer_bytes()},
          {"activations", s.slot * static_cast<std::size_t>(stage_->slots())},
          {"scratch", s.scratch},
          {"stage boundary", s.boundary},
          {"workspace", dry ? workspace_.high_water() : workspace_.capacity()},
          {"communication", communication},
          {"scalars", 2 * Arena::kAlign}};
}

}  // namespace dstrain
