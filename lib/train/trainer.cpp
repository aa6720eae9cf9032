#include "lib/train/trainer.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <utility>

#include "kernels/cpu/blas.h"
#include "lib/checkpoint/names.h"
#include "lib/core/host_memory.h"
#include "lib/core/to_error.h"
#include "lib/optim/lr_schedule.h"
#include "lib/train/ceiling.h"
#include "lib/train/convert.h"
#include "lib/train/inference.h"
#include "lib/train/plan.h"
#include "lib/train/shared_directory.h"
#include "lib/train/weights.h"

namespace dstrain {

Trainer::Trainer(const Config& config, World& world, const Files& files, const Clock& clock, bool quiet,
                 const Watch& watch)
    : config_(config),
      world_(world),
      files_(files),
      clock_(clock),
      directory_(config.run.dir),
      first_rank_(world.rank() == 0),
      quiet_(quiet),
      watch_(config_.watchdog, world, watch),
      guard_(config.guard) {}

Trainer::~Trainer() = default;

ExitCode Trainer::run() {
  try {
    start();
    loop();
    finish();
  } catch (const std::exception& e) {
    write_end(to_error(e));
    throw;
  }
  const bool early = stopped_ && state_.step < config_.training.steps;
  const ExitCode code = early ? ExitCode::stopped : ExitCode::ok;
  if (first_rank_)
    directory_.write_exit(files_, code,
                          !early            ? "done"
                          : state_.step > 0 ? "stopped on a signal after saving"
                                            : "stopped on a signal before the first step",
                          state_.step);
  watch_.finish();
  return code;
}

void Trainer::write_end(const Error& e) {
  // Who is lost, and what it did, is for the watchdog to say, which then ends the process.
  if (e.code() == ExitCode::lost) watch_.explain();
  watch_.ends(e.code());
  if (log_) log_->error(e.what());
  if (!watch_.owns_directory() || (e.shared() && !first_rank_)) return;
  // A peer's own reason says more than that it is gone.
  if (e.code() == ExitCode::lost && files_.exists(directory_.exit())) return;
  directory_.write_exit(files_, e.code(), e.what(), state_.step);
}

bool Trainer::stops_at_start() {
  stopped_ = watch_.stop_agreed();
  return stopped_;
}

void Trainer::start() {
  watch_.start();
  require(!config_.data.train.empty(), ExitCode::usage, "data.train: no token file to train on");
  const Device device = run_device(config_);
  const Mesh mesh(mesh_sizes(config_.parallel));
  use_device(config_, world_, device);
  agreed_ = std::move(make_groups(world_, mesh, Poster::trainer).control);
  loader_groups_ = make_groups(world_, mesh, Poster::loader);
  guard_groups_ = make_groups(world_, mesh, Poster::guard);
  Agreement everyone(*agreed_, watch_.here());
  everyone.together([&] {
    if (!first_rank_) return;
    lock_.emplace(files_, directory_.path(), world_.host_name(), clock_);
    directory_.create(files_);
    remove_leftovers(files_, directory_.checkpoints());
  });
  prove_shared(files_, clock_, directory_.path(), world_.host_name(), everyone);
  watch_.own_directory();
  log_ = std::make_unique<Log>(first_rank_ && !quiet_, first_rank_ ? directory_.log() : "");

  const RankPlan plan = plan_rank(config_, mesh, world_.rank(), device);
  // Before the engine takes its memory.
  peak_ = peak_flops(config_, device);
  everyone.together([&] { require_host_memory(plan, world_, device, available_host_memory()); });
  const auto make = [&] { engine_ = make_engine(config_, world_, mesh, device, pool_threads(config_, world_), plan); };
  if (device == Device::cuda) {
    make();  // collective: it makes communicators
  } else {
    everyone.together(make);
  }
  engine_->stream().set_whereabouts(watch_.here());
  everyone.together([&] {
    sources_ = std::make_unique<TokenSources>(files_, config_.data.train, config_.model.vocab_size,
                                              config_.data.document_mask);
    sampler_ = std::make_unique<Sampler>(train_sampler(config_, *sources_));
    if (!config_.data.eval.empty() && config_.eval.every > 0)
      evaluator_ = std::make_unique<Evaluator>(config_, files_, clock_, *engine_);
    check_tokenizer(config_, files_, sources_->info(), config_.data.train.front().path);
  });
  checkpointer_ = std::make_unique<Checkpointer>(config_, files_, clock_, directory_.checkpoints(), world_, *engine_);
  const Index state_bytes = everyone.sum(static_cast<Index>(checkpointer_->snapshot_bytes()));
  everyone.together([&] {
    if (first_rank_) require_free_space(files_, directory_.path(), static_cast<std::uint64_t>(state_bytes));
  });
  if (stops_at_start()) return;
  tune();
  if (stops_at_start()) return;
  restore_latest_or_initialize();
  if (stops_at_start()) return;
  // Only now is it known that the directory's run is this job's.
  everyone.together([&] {
    if (first_rank_) directory_.write_job(files_, config_);
  });
  loader_ = std::make_unique<Loader>(
      *sources_, *sampler_, data_plan(config_, engine_->coordinates(), -1, device == Device::cuda),
      loader_groups_.replica->size() > 1 ? loader_groups_.replica.get() : nullptr, clock_);
  everyone.together([&] { open_metrics(); });

  evaluated_ = everyone.sum(static_cast<Index>(first_rank_ && metrics_->evaluated() ? 1 : 0)) > 0;

  if (stops_at_start()) return;
  // Rates and costs of all ranks together.
  flops_ = everyone.sum(plan.step.total().flops);
  flops_full_ = everyone.sum(plan.step.total().flops_full);
  const double unmeasured = std::numeric_limits<double>::quiet_NaN();
  ceiling_ = everyone.sum(peak_ > 0 ? peak_ : quiet_ ? unmeasured : measure_matmul_rate(engine_->stream()));
  print_start(plan);
  stops_at_start();
}

void Trainer::tune() {
  engine_->initialize(config_.run.seed);
  if (engine_->stream().device() != Device::cuda) return;
  // Every rank reads what the first one measured in an earlier run: choices change speed, and bits only when the job is
  // not deterministic.
  const std::string path = directory_.tuned();
  const std::string known = files_.exists(path) ? read_file(files_, path) : "";
  const std::string tuned = engine_->tune(known);
  Agreement(*agreed_, watch_.here()).together([&] {
    if (first_rank_ && tuned != known) write_file_atomically(files_, path, tuned);
  });
}

void Trainer::restore_latest_or_initialize() {
  const double begin = clock_.now();
  const auto restored = checkpointer_->restore([&](const std::string& line) { log_->warn(line); });
  if (restored) {
    // Every rank finds the same: one tells it.
    Agreement(*guard_groups_.control, watch_.here()).together([&] {
      // The cursor counts samples of these very tokens.
      require(restored->data_hash.empty() || restored->data_hash == sources_->fingerprint(), ExitCode::data,
              "data.train: its tokens, weights or document mask (hash {}) are not those that the checkpoint of step {} "
              "was trained on (hash {}); a new run can start from its weights",
              sources_->fingerprint(), restored->step, restored->data_hash);
      // Earlier steps may have had another batch.
      require_train_epochs(config_, *sources_, *sampler_, restored->step, restored->next_sample);
    });
    state_ = *restored;
    engine_->set_updates(state_.optimizer_step);
    saved_step_ = state_.step;
    guard_ = Guard(config_.guard, state_.guard);
    log_->info(format("resumed from step {}, read in {}", state_.step, human_seconds(clock_.now() - begin)));
  } else {
    start_anew();
  }
  state_.seed = config_.run.seed;
  state_.config_hash = job_identity(config_);
  state_.data_hash = sources_->fingerprint();
  state_.mesh = engine_->mesh().sizes();
}

// The weights of a new run; engine_->initialize() has been called.
void Trainer::start_anew() {
  if (config_.model.weights.empty()) return;
  if (is_run(files_, config_.model.weights)) {
    load_run(files_, config_.model.weights, world_, *engine_, [&](const std::string& line) { log_->warn(line); });
    return;
  }
  Agreement(*agreed_, watch_.here()).together([&] {
    const SafetensorsModel weights(files_, config_.model.weights);
    if (const Index off = check_all_used(config_.model, weights); off > 0)
      log_->warn(format("{}: {} tensors of modules of multi-token prediction are left out: the model has {}",
                        config_.model.weights, off, config_.model.num_nextn_predict_layers));
    load_weights(*engine_, weights);
  });
}

void Trainer::open_metrics() {
  recorded_step_ = state_.step;
  if (!first_rank_) return;
  metrics_ = std::make_unique<MetricsFile>(files_, directory_.metrics(), state_.step);
  if (config_.observe.tensorboard)
    tensorboard_ = std::make_unique<TensorBoardFile>(files_, clock_, directory_.tensorboard(), state_.step);
}

void Trainer::print_start(const RankPlan& plan) {
  if (!first_rank_) return;
  const MeshSizes& m = engine_->mesh().sizes();
  const bool gpu = engine_->stream().device() == Device::cuda;
  log_->info(format("{}: {}, {} rank(s) of {} thread(s) on {}; {}{}; {} {} FLOP/s", config_.run.name, m.to_string(),
                    m.ranks(), engine_->pool().threads(), gpu ? gpu::info(gpu::current()).name : std::string("cpu"),
                    config_.precision.compute, config_.precision.tf32 ? " (TF32 matmuls)" : "",
                    peak_ > 0 ? "vendor's peak" : "measured matmul ceiling", human_count(ceiling_)));
  std::string memory, host;
  std::size_t total = 0;
  for (const MemoryRow& row : plan.memory) {
    std::string& list = row.host ? host : memory;
    list += format("{}{} {}", list.empty() ? "" : ", ", row.purpose, human_bytes(static_cast<double>(row.bytes)));
    if (row.host == false) total += row.bytes;
  }
  log_->info(format("{}memory of rank 0: {}", gpu ? "GPU " : "", memory));
  if (gpu) {
    log_->info(format("host memory of rank 0: {}", host));
    print_gpu();
  }
  const cpu::BlasInfo blas = cpu::blas_info();
  if (!gpu) log_->info(format("BLAS kernel {}", blas.kernel));
  if (!gpu && !blas.wanted.empty())
    log_->warn(
        format("BLAS runs its kernel {}, the processor allows {}: see dstrain doctor", blas.kernel, blas.wanted));
  for (const std::string& line : describe_sources(config_, *sources_, *sampler_)) log_->info("data.train: " + line);
  progress_ =
      std::make_unique<Progress>(!quiet_, std::string(world_.kind()) != "mpi", clock_, config_.training.steps, total);
}

// The fast paths in use, and how ranks talk.
void Trainer::print_gpu() {
  std::string paths = engine_->stream().kernel_state() ? engine_->stream().kernel_state()->fast_paths() : "";
  std::size_t begin = 0;
  for (std::size_t end; (end = paths.find('\n', begin)) != std::string::npos; begin = end + 1)
    log_->info(paths.substr(begin, end - begin));
  if (begin < paths.size()) log_->info(paths.substr(begin));
  log_->info(format("passes are {}; gradients are reduced {}",
                    engine_->graphs() ? "recorded and started as CUDA graphs" : "launched op by op",
                    engine_->overlaps() ? "beside the last backward" : "after the last backward"));
  const gpu::MemoryUse use = gpu::memory_use();
  std::size_t arenas = 0;
  for (const MemoryRow& row : engine_->memory())
    if (!row.host) arenas += row.bytes;
  log_->info(format("GPU memory in use {}: arenas {}, context and libraries {}",
                    human_bytes(static_cast<double>(use.total - use.free)), human_bytes(static_cast<double>(arenas)),
                    human_bytes(static_cast<double>(use.total - use.free) - static_cast<double>(arenas))));
}

void Trainer::loop() {
  if (stopped_) return;
  // What training starts from, and what a run that was ended in its evaluation has missed.
  if (evaluator_ && due(config_.eval.every) && !evaluated_) evaluate();
  while (state_.step < config_.training.steps && !stopped_) {
    profile_before(state_.step + 1);
    enqueue_step();
    profile_after(state_.step);
    const bool last = state_.step == config_.training.steps;
    const bool evaluates = evaluator_ && (due(config_.eval.every) || last);
    // The host looks at results a step late, but for what must know them.
    if (!settle(last || evaluates || due(config_.checkpoint.every) ? 0 : engine_->lag())) continue;
    if (stopped_ && !settle(0)) continue;
    if (due(config_.checkpoint.every) || stopped_) save();
    if (evaluates && !stopped_) evaluate();
    report_saves(checkpointer_->poll(), false);
  }
}

// What is traced are whole steps: those before and after are not under way meanwhile.
void Trainer::profile_before(Index step) {
  const std::vector<double>& steps = config_.profile.steps;
  if (steps.empty() || static_cast<double>(step) != steps[0]) return;
  if (!settle(0)) return;
  trace_ = std::make_unique<StepTrace>(engine_->stream(), clock_, world_.rank());
}

void Trainer::profile_after(Index step) {
  const bool end = static_cast<double>(step) >= std::min(config_.profile.steps.empty() ? 0.0 : config_.profile.steps[1],
                                                         static_cast<double>(config_.training.steps));
  if (!trace_ || !(end || stopped_) || !settle(0)) return;
  const std::string path = directory_.trace(world_.rank());
  write_file_atomically(files_, path, trace_->finish());
  trace_.reset();
  if (first_rank_)
    log_->info(
        format("trace of steps {} to {} written to {}", config_.profile.steps[0], config_.profile.steps[1], path));
}

void Trainer::enqueue_step() {
  UnderWay step{.begin = clock_.now()};
  step.step = state_.step + 1;
  watch_.step(step.step);
  state_.next_sample = guard_.cursor(state_.next_sample, config_.training.global_batch_size);
  const StepData& data = [&]() -> const StepData& {
    const Waiting waiting(watch_.here(), PackedText("loader"));
    return loader_->next(state_.next_sample);
  }();
  step.data = &data;
  step.first_sample = state_.next_sample;
  if (before_step_) before_step_(*engine_, step.step);
  step.limits = guard_.limits(step.step);
  step.lr = learning_rate(config_.lr_schedule, config_.optimizer.lr, config_.training.steps, step.step);
  step.wait_seconds = data.wait_seconds;
  step.valid_tokens = data.valid_tokens;
  step.tokens = state_.tokens + data.valid_tokens;
  step.stall_seconds = std::exchange(pending_stall_, 0);
  const MtpConfig& mtp = config_.mtp;
  const bool late = mtp.change_after_tokens > 0 && state_.tokens >= mtp.change_after_tokens;
  engine_->set_mtp_loss_weight(late ? mtp.loss_weight_after : mtp.loss_weight);
  engine_->enqueue_step(data.batches, valid_tokens(data), step.lr, watch_.stop_requested(),
                        guard_.device_limits(step.step), checks_of(step.step));
  ++state_.step;
  state_.next_sample += config_.training.global_batch_size;
  state_.tokens = step.tokens;
  step.samples = state_.next_sample;
  under_way_.push_back(step);
}

bool Trainer::settle(std::size_t left) {
  while (under_way_.size() > left) {
    const std::optional<StepRecord> record = record_of_oldest();
    if (!record) return false;
    if (!first_rank_) continue;
    recorded_step_ = record->step;
    metrics_->write(*record);
    if (tensorboard_) tensorboard_->write(*record);
    progress_->step(*record);
  }
  return true;
}

std::optional<StepRecord> Trainer::record_of_oldest() {
  const UnderWay step = under_way_.front();
  const StepResult result = [&] {
    const Waiting waiting(watch_.here(), PackedText("device"));
    return engine_->take_result();
  }();
  under_way_.pop_front();
  stopped_ = stopped_ || result.stop;
  if (!accept(step, result)) return std::nullopt;
  state_.optimizer_step = result.updates;

  const double now = clock_.now(), seconds = now - std::max(step.begin, settled_at_);
  check_seconds_ += result.check_seconds;
  step_seconds_ += seconds;
  checked_steps_ += result.sums.empty() ? 0 : 1;
  settled_at_ = now;
  watch_.step_took(seconds);
  std::vector<double> load;
  std::vector<std::vector<std::int64_t>> tokens;
  const Index every = config_.observe.expert_tokens_every;
  for (const std::vector<float>& counts : result.expert_tokens) {
    const double all = std::accumulate(counts.begin(), counts.end(), 0.0);
    load.push_back(static_cast<double>(*std::max_element(counts.begin(), counts.end())) *
                   static_cast<double>(counts.size()) / all);
    if (every > 0 && step.step % every == 0) tokens.emplace_back(counts.begin(), counts.end());
  }
  return StepRecord{
      .step = step.step,
      .tokens = step.tokens,
      .first_sample = step.first_sample,
      .samples = step.samples,
      .loss = result.loss,
      .grad_norm = result.grad_norm,
      .lr = step.lr,
      .seconds = seconds,
      .tokens_per_second = static_cast<double>(step.valid_tokens) / seconds,
      .mfu = flops_ / seconds / ceiling_,
      .mfu_full = flops_full_ / seconds / ceiling_,
      .loader_wait_seconds = step.wait_seconds,
      .checkpoint_stall_seconds = step.stall_seconds,
      .skipped = step.step - result.updates,
      .rollbacks = guard_.state().all_rollbacks,
      .mtp_loss = config_.model.num_nextn_predict_layers > 0 ? std::optional(result.mtp_loss) : std::nullopt,
      .expert_load = std::move(load),
      .expert_tokens = std::move(tokens)};
}

void Trainer::evaluate() {
  watch_.evaluation();
  const EvalRecord record = evaluator_->run(state_.step, {}, [&] { return watch_.stop_agreed(); });
  stopped_ = stopped_ || record.eval_tokens == 0;
  if (!first_rank_ || record.eval_tokens == 0) return;
  metrics_->write(record);
  if (tensorboard_) tensorboard_->write(record);
  const std::string line = format("step {}  eval loss {:.4f} over {} tokens, {}", record.step, record.eval_loss,
                                  record.eval_tokens, human_seconds(record.seconds));
  progress_->message(line);
}

void Trainer::save() {
  // Ranks may differ about a save that was given up.
  if (Agreement(*agreed_, watch_.here()).sum(saved_step_ == state_.step ? Index{0} : Index{1}) == 0) return;
  watch_.save();
  const Waiting waiting(watch_.here(), PackedText("writer"));
  state_.guard = guard_.state();
  const Checkpointer::Stall stall = checkpointer_->save(state_);
  pending_stall_ = stall.total();
  if (!stall.skipped) saved_step_ = state_.step;
}

void Trainer::report_saves(std::vector<Checkpointer::Outcome> outcomes, bool last) {
  const std::vector<std::string> notices = checkpointer_->notices();
  if ((!outcomes.empty() || !notices.empty()) && progress_) progress_->end_line();
  for (const std::string& notice : notices) log_->warn(notice);
  for (std::size_t i = 0; i < outcomes.size(); ++i) {
    const Checkpointer::Outcome& o = outcomes[i];
    for (const std::string& warning : o.warnings) log_->warn(warning);
    if (!o.error) {
      report_forecast(o.seconds);
      if (!first_rank_) continue;
      log_->info(format("step {}: checkpoint saved, {} in {}", o.step, human_bytes(static_cast<double>(o.bytes)),
                        human_seconds(o.seconds)));
      const SaveRecord record{.step = recorded_step_,
                              .checkpoint_step = o.step,
                              .seconds = o.seconds,
                              .bytes = static_cast<double>(o.bytes),
                              .failed = failed_saves_};
      metrics_->write(record);
      if (tensorboard_) tensorboard_->write(record);
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

// How long a stop takes: said once, and again when that becomes too long.
void Trainer::report_forecast(double save_seconds) {
  const RunWatch::Forecast f = watch_.forecast(save_seconds);
  if (!first_rank_ || (forecast_ && (*forecast_ || !f.too_long))) return;
  forecast_ = f.too_long;
  const std::string line = format("a stop signal takes about {} to a saved checkpoint; the grace is {}",
                                  human_seconds(f.seconds), human_seconds(config_.watchdog.grace));
  if (f.too_long) {
    log_->warn(line + ": more than half of it; ask for the signal earlier, or save to faster storage");
  } else {
    log_->info(line);
  }
}

void Trainer::finish() {
  if (checkpointer_ && state_.step > 0) {
    watch_.save();
    const Waiting waiting(watch_.here(), PackedText("writer"));
    report_saves(checkpointer_->finish(), false);
    save();
    report_saves(checkpointer_->finish(), true);
  }
  report_checks();
  if (first_rank_ && metrics_ && metrics_->dropped() > 0)
    log_->warn(format("{} lines of {} could not be written", metrics_->dropped(), directory_.metrics()));
  if (tensorboard_ && tensorboard_->dropped() > 0)
    log_->warn(format("{} events of {} could not be written", tensorboard_->dropped(), tensorboard_->path()));
}

}  // namespace dstrain
