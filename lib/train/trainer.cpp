#include "lib/train/trainer.h"

#include <algorithm>
#include <cmath>
#include <tuple>
#include <utility>

#include "kernels/cpu/blas.h"
#include "lib/checkpoint/names.h"
#include "lib/optim/lr_schedule.h"
#include "lib/train/ceiling.h"
#include "lib/train/plan.h"
#include "lib/train/weights.h"

namespace dstrain {

int pool_threads(const Config& config, const World& world) {
  if (config.run.threads > 0) return static_cast<int>(config.run.threads);
  // A launcher that binds each rank has shared the cores out already.
  const int cores = available_cores();
  return cores < online_cores() ? cores : std::max(1, cores / world.local_size());
}

Device run_device(const Config& config) {
  require(config.run.device != "cuda", ExitCode::device, "run.device: cuda, but this build has no CUDA");
  return Device::cpu;
}

Trainer::Trainer(const Config& config, World& world, const Files& files, const Clock& clock, bool quiet)
    : config_(config),
      world_(world),
      files_(files),
      clock_(clock),
      directory_(config.run.dir),
      first_rank_(world.rank() == 0),
      quiet_(quiet) {}

Trainer::~Trainer() = default;

ExitCode Trainer::run() {
  try {
    start();
    loop();
    finish();
  } catch (const Error& e) {
    // The lock shows that the directory is ours to write to.
    if (lock_) {
      if (log_) log_->error(e.what());
      directory_.write_exit(files_, e.code(), e.what(), state_.step);
    }
    throw;
  } catch (const std::exception& e) {
    if (lock_) directory_.write_exit(files_, ExitCode::bug, e.what(), state_.step);
    throw;
  }
  const bool early = stopped_ && state_.step < config_.training.steps;
  const ExitCode code = early ? ExitCode::stopped : ExitCode::ok;
  if (first_rank_)
    directory_.write_exit(files_, code, early ? "stopped on a signal after saving" : "done", state_.step);
  return code;
}

void Trainer::start() {
  require(!config_.data.train.empty(), ExitCode::usage, "data.train: no token file to train on");
  const Device device = run_device(config_);
  const Mesh mesh(mesh_sizes(config_.parallel));
  checkpoint_groups_ = make_groups(world_, mesh, Poster::checkpoint);
  loader_groups_ = make_groups(world_, mesh, Poster::loader);
  Agreement everyone(*checkpoint_groups_.control);
  everyone.together([&] {
    if (!first_rank_) return;
    lock_.emplace(files_, directory_.path(), world_.host_name(), clock_);
    directory_.create(files_);
    remove_leftovers(files_, directory_.checkpoints());
  });
  log_ = std::make_unique<Log>(first_rank_ && !quiet_, first_rank_ ? directory_.log() : "");

  const RankPlan plan = plan_rank(config_, mesh, world_.rank());
  engine_ = std::make_unique<Engine>(config_, world_, mesh, device, pool_threads(config_, world_), plan.sizes);
  everyone.together([&] {
    sources_ = std::make_unique<TokenSources>(files_, paths_of(config_.data.train), config_.model.vocab_size);
    sampler_ = std::make_unique<Sampler>(sources_->tokens(), config_.training.sequence_length, config_.run.seed, true);
    if (!config_.data.eval.empty() && config_.eval.every > 0)
      evaluator_ = std::make_unique<Evaluator>(config_, files_, clock_, *engine_);
    check_tokenizer(config_, files_, sources_->info(), config_.data.train.front().path);
  });
  checkpointer_ = std::make_unique<Checkpointer>(config_, files_, clock_, directory_.checkpoints(),
                                                 *checkpoint_groups_.control, *engine_);
  const Index state_bytes = everyone.sum(static_cast<Index>(checkpointer_->snapshot_bytes()));
  everyone.together([&] {
    if (first_rank_) require_free_space(files_, directory_.path(), static_cast<std::uint64_t>(state_bytes));
  });
  restore_latest_or_initialize();
  // Only now is it known that the directory's run is this job's.
  everyone.together([&] {
    if (first_rank_) directory_.write_job(files_, config_);
  });
  loader_ =
      std::make_unique<Loader>(*sources_, *sampler_, data_plan(config_, engine_->coordinates(), -1),
                               loader_groups_.replica->size() > 1 ? loader_groups_.replica.get() : nullptr, clock_);
  if (first_rank_) metrics_ = std::make_unique<MetricsFile>(files_, directory_.metrics(), state_.step);

  // Rates and costs of all ranks together.
  double sums[3] = {plan.step.total().flops, plan.step.total().flops_full, measure_matmul_rate(engine_->stream())};
  engine_->groups().control->all_reduce(engine_->stream(), Tensor(sums, DType::f64, Device::cpu, {3}), ReduceOp::sum);
  std::tie(flops_, flops_full_, ceiling_) = std::tuple(sums[0], sums[1], sums[2]);
  print_start(plan);
}

void Trainer::restore_latest_or_initialize() {
  engine_->initialize(config_.run.seed);
  const auto restored = checkpointer_->restore([&](const std::string& line) { log_->warn(line); });
  if (restored) {
    state_ = *restored;
    saved_step_ = state_.step;
    log_->info(format("resumed from step {}", state_.step));
  } else if (!config_.model.weights.empty()) {
    Agreement(*checkpoint_groups_.control).together([&] {
      const SafetensorsModel weights(files_, config_.model.weights);
      check_all_used(config_.model, weights);
      load_weights(engine_->stage().model(), weights);
    });
  }
  state_.seed = config_.run.seed;
  state_.config_hash = job_identity(config_);
  state_.mesh = engine_->mesh().sizes();
}

void Trainer::print_start(const RankPlan& plan) {
  if (!first_rank_) return;
  const MeshSizes& m = engine_->mesh().sizes();
  log_->info(format("{}: {}, {} rank(s) of {} thread(s); float32; matmul ceiling {} FLOP/s", config_.run.name,
                    m.to_string(), m.ranks(), engine_->pool().threads(), human_count(ceiling_)));
  std::string memory;
  std::size_t total = 0;
  for (const MemoryRow& row : plan.memory) {
    memory += format("{}{} {}", memory.empty() ? "" : ", ", row.purpose, human_bytes(static_cast<double>(row.bytes)));
    total += row.bytes;
  }
  log_->info(format("memory of rank 0: {}", memory));
  const cpu::BlasInfo blas = cpu::blas_info();
  log_->info(format("BLAS kernel {}", blas.kernel));
  if (!blas.wanted.empty())
    log_->warn(
        format("BLAS runs its kernel {}, the processor allows {}: see dstrain doctor", blas.kernel, blas.wanted));
  progress_ =
      std::make_unique<Progress>(!quiet_, std::string(world_.kind()) != "mpi", clock_, config_.training.steps, total);
}

void Trainer::loop() {
  if (evaluator_ && state_.step == 0) evaluate();  // what training starts from
  while (state_.step < config_.training.steps && !stopped_) {
    const StepRecord record = train_step();
    if (first_rank_) {
      metrics_->write(record);
      progress_->step(record);
    }
    if (due(config_.checkpoint.every) || stopped_) save();
    if (evaluator_ && !stopped_ && (due(config_.eval.every) || state_.step == config_.training.steps)) evaluate();
    report_saves(checkpointer_->poll(), false);
  }
}

StepRecord Trainer::train_step() {
  const double begin = clock_.now();
  const StepData& data = loader_->next(state_.next_sample);
  const double lr = learning_rate(config_.lr_schedule, config_.optimizer.lr, config_.training.steps, state_.step + 1);
  const StepResult result = engine_->train_step(data.batches, static_cast<double>(data.valid_tokens), lr,
                                                state_.optimizer_step + 1, signal_.received());
  if (!result.finite && config_.guard.on_nonfinite == "abort")
    throw Error(
        ExitCode::nonfinite,
        format("step {}: loss {}, gradient norm {}: not finite, and guard.on_nonfinite is abort; weights are as "
               "after step {}",
               state_.step + 1, result.loss, result.grad_norm, state_.step),
        true);
  if (!result.finite && first_rank_)
    log_->warn(format("step {}: loss {}, gradient norm {}: not finite, update skipped", state_.step + 1, result.loss,
                      result.grad_norm));
  ++state_.step;
  state_.optimizer_step += result.finite ? 1 : 0;
  state_.next_sample += config_.training.global_batch_size;
  state_.tokens += data.valid_tokens;
  stopped_ = result.stop;

  const double seconds = clock_.now() - begin;
  return {.step = state_.step,
          .tokens = state_.tokens,
          .loss = result.loss,
          .grad_norm = result.grad_norm,
          .lr = lr,
          .seconds = seconds,
          .tokens_per_second = static_cast<double>(data.valid_tokens) / seconds,
          .mfu = flops_ / seconds / ceiling_,
          .mfu_full = flops_full_ / seconds / ceiling_,
          .loader_wait_seconds = data.wait_seconds,
          .checkpoint_stall_seconds = std::exchange(pending_stall_, 0),
          .skipped = state_.step - state_.optimizer_step};
}

void Trainer::evaluate() {
  const EvalRecord record = evaluator_->run(state_.step);
  if (!first_rank_) return;
  metrics_->write(record);
  const std::string line = format("step {}  eval loss {:.4f} over {} tokens, {}", record.step, record.eval_loss,
                                  record.eval_tokens, human_seconds(record.seconds));
  progress_->message(line);
}

void Trainer::save() {
  if (saved_step_ == state_.step) return;
  const Checkpointer::Stall stall = checkpointer_->save(state_, engine_->pool());
  pending_stall_ = stall.total();
  saved_step_ = state_.step;
}

void Trainer::report_saves(std::vector<Checkpointer::Outcome> outcomes, bool last) {
  if (!outcomes.empty() && progress_) progress_->end_line();
  for (std::size_t i = 0; i < outcomes.size(); ++i) {
    const Checkpointer::Outcome& o = outcomes[i];
    for (const std::string& warning : o.warnings) log_->warn(warning);
    if (!o.error) {
      if (first_rank_)
        log_->info(format("step {}: checkpoint saved, {} in {}", o.step, human_bytes(static_cast<double>(o.bytes)),
                          human_seconds(o.seconds)));
      continue;
    }
    try {
      std::rethrow_exception(o.error);
    } catch (const Error& e) {
      // Training goes on without this checkpoint, unless it was the last one or a rank is gone.
      if (e.code() == ExitCode::lost || (last && i + 1 == outcomes.size())) throw;
      if (o.step == saved_step_) saved_step_ = -1;  // a run that ends here tries once more
      ++failed_saves_;
      if (first_rank_)
        log_->warn(
            format("checkpoint of step {} failed ({} so far), training goes on: {}", o.step, failed_saves_, e.what()));
    }
  }
}

void Trainer::finish() {
  report_saves(checkpointer_->finish(), false);
  save();
  report_saves(checkpointer_->finish(), true);
  if (first_rank_ && metrics_->dropped() > 0)
    log_->warn(format("{} lines of {} could not be written", metrics_->dropped(), directory_.metrics()));
}

}  // namespace dstrain
