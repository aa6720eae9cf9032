// The trainer's answer to bad numbers.

#include <algorithm>

#include "lib/comm/agree.h"
#include "lib/data/describe.h"
#include "lib/train/diagnose.h"
#include "lib/train/trainer.h"

namespace dstrain {

StepChecks Trainer::checks_of(Index step) const {
  const GuardConfig& g = config_.guard;
  const auto comes = [&](Index every) { return every > 0 && step % every == 0; };
  return {.recompute = config_.run.deterministic && comes(g.recompute_every),
          .replicas = config_.parallel.data > 1 && comes(g.replica_hash_every)};
}

// Whether the step stands, its update applied or left out; else the run is back at a checkpoint. All ranks come to the
// same answer from the same numbers.
bool Trainer::accept(const UnderWay& step, const StepResult& result) {
  if (!result.sums.empty()) {
    const std::string corruption = find_corruption(engine_->mesh(), result.sums);
    if (!corruption.empty())
      throw Error(ExitCode::device,
                  format("step {}: silent corruption: {}; nothing was saved since, start again without that machine",
                         step.step, corruption),
                  true);
  }
  const Guard::Decision d = guard_.judge({.step = step.step,
                                          .loss = result.loss,
                                          .grad_norm = result.grad_norm,
                                          .finite = result.finite,
                                          .weights_good = result.weights_good,
                                          .within = result.within,
                                          .samples = {step.first_sample, step.samples}},
                                         step.limits);
  if (d.verdict == StepVerdict::good) return true;
  const std::string why = explain(step, d);
  if (progress_) progress_->end_line();
  if (d.action == Guard::Action::abort) {
    // Steps enqueued since have changed nothing: the device has halted updates.
    state_.step = step.step - 1;
    throw Error(ExitCode::nonfinite, format("{}; weights are as before step {}", why, step.step), true);
  }
  if (d.action == Guard::Action::rollback) {
    roll_back(why);
    return false;
  }
  if (first_rank_) log_->warn(why);
  return true;
}

// The decision, with what is to blame. Collective.
std::string Trainer::explain(const UnderWay& step, const Guard::Decision& decision) {
  Culprit culprit;
  if (decision.verdict == StepVerdict::nonfinite)
    culprit = find_culprit(*engine_, *guard_groups_.control, step.data->batches, valid_tokens(*step.data),
                           engine_->lag() == 0);
  Agreement everyone(*guard_groups_.control, watch_.here());
  if (!first_rank_) return everyone.broadcast("");
  const TrainingConfig& t = config_.training;
  Index begin = step.first_sample, end = step.samples;
  if (culprit.micro_batch >= 0) {
    begin +=
        culprit.data_rank * (t.global_batch_size / config_.parallel.data) + culprit.micro_batch * t.micro_batch_size;
    end = begin + t.micro_batch_size;
  }
  constexpr Index kMost = 4;
  std::string samples;
  try {
    // The loader's thread reads the trainer's own.
    TokenSources sources(files_, config_.data.train, config_.model.vocab_size);
    samples = describe_samples(sources, *sampler_, begin, end, kMost);
  } catch (const Error& e) {
    samples = format("samples {} to {} ({})", begin, end - 1, e.what());
  }
  const std::string why = format("{}{}{}; {}", decision.why, culprit.text.empty() ? "" : "; ", culprit.text, samples);
  try {
    everyone.broadcast(why);
  } catch (const Error& e) {
    // At the end of a run a rank may be gone as soon as it knows why.
    if (e.code() != ExitCode::lost || decision.action != Guard::Action::abort) throw;
  }
  return why;
}

// To the newest good checkpoint, or to the start when there is none. The batches to blame will be passed over.
void Trainer::roll_back(const std::string& why) {
  watch_.start();
  while (!under_way_.empty()) {
    stopped_ = engine_->take_result().stop || stopped_;
    under_way_.pop_front();
  }
  report_saves(checkpointer_->finish(), false);
  const auto restored = checkpointer_->restore([&](const std::string& line) { log_->warn(line); });
  if (restored) {
    state_.step = restored->step;
    state_.optimizer_step = restored->optimizer_step;
    state_.next_sample = restored->next_sample;
    state_.tokens = restored->tokens;
    engine_->set_updates(restored->optimizer_step);
  } else {
    engine_->initialize(config_.run.seed);
    start_anew();
    state_.step = state_.optimizer_step = state_.next_sample = state_.tokens = 0;
  }
  guard_.roll_back_to(restored ? restored->guard : GuardState{});
  saved_step_ = restored ? state_.step : -1;
  Agreement(*guard_groups_.control, watch_.here()).together([&] { open_metrics(); });
  if (first_rank_)
    log_->warn(format("{}; rolled back to {}, rollback {} of {}", why,
                      restored ? format("step {}", state_.step) : std::string("the start: there is no checkpoint"),
                      guard_.state().rollbacks, config_.guard.max_rollbacks));
}

void Trainer::report_checks() {
  if (first_rank_ && checked_steps_ > 0)
    log_->info(format("guard: checks in {} of this run's steps took {:.3f} s, {:.3f}% of training", checked_steps_,
                      check_seconds_, 100 * check_seconds_ / std::max(step_seconds_, 1e-9)));
}

}  // namespace dstrain
