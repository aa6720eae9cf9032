#pragma once
// The training loop, and what surrounds a step: data, evaluation, checkpoints, metrics, the end of a run.

#include <deque>
#include <functional>
#include <memory>
#include <optional>

#include "lib/checkpoint/run_lock.h"
#include "lib/config/config.h"
#include "lib/core/clock.h"
#include "lib/core/files.h"
#include "lib/observe/log.h"
#include "lib/observe/progress.h"
#include "lib/observe/tensorboard.h"
#include "lib/train/checkpointer.h"
#include "lib/train/evaluate.h"
#include "lib/train/guard.h"
#include "lib/train/machine.h"
#include "lib/train/profile.h"
#include "lib/train/run_directory.h"
#include "lib/train/run_watch.h"

namespace dstrain {

class Trainer {
 public:
  // One rank of the resolved job. Everything is borrowed. `quiet`: nothing on the terminal, and no measurement of what
  // the machine could do, so no mfu on a CPU (tests). Collective.
  Trainer(const Config& config, World& world, const Files& files, const Clock& clock, bool quiet = false,
          const Watch& watch = {});
  ~Trainer();

  // Trains until training.steps or a stop signal; resumes when the run directory holds a checkpoint. Returns ok or
  // stopped; throws Error with the documented code otherwise. Either way exit.json says how it ended.
  ExitCode run();

  // For tests, before run(): called before each step is enqueued, with the engine and the step's number.
  void before_step(std::function<void(Engine&, Index)> look) { before_step_ = std::move(look); }

 private:
  void start();
  // Whether a stop signal has come to any rank: then nothing more is started. Collective.
  bool stops_at_start();
  // exit.json, by the rank whose word it is.
  void write_end(const Error& error);
  void loop();
  void restore_latest_or_initialize();
  void enqueue_step();
  // Takes the results of steps under way until `left` are, and records them. False when the run has gone back to a
  // checkpoint meanwhile.
  bool settle(std::size_t left);
  // Nothing when the run has gone back to a checkpoint instead.
  std::optional<StepRecord> record_of_oldest();
  void evaluate();
  void save();
  void report_saves(std::vector<Checkpointer::Outcome> outcomes, bool last);
  void report_forecast(double save_seconds);
  void finish();
  bool due(std::int64_t every) const { return every > 0 && state_.step % every == 0; }
  void tune();
  // In trainer_guard.cpp.
  StepChecks checks_of(Index step) const;
  struct UnderWay;
  bool accept(const UnderWay& step, const StepResult& result);
  std::string explain(const UnderWay& step, const Guard::Decision& decision);
  void roll_back(const std::string& why);
  void start_anew();
  void open_metrics();
  void report_checks();

  void profile_before(Index step);
  void profile_after(Index step);
  void print_start(const RankPlan& plan);
  void print_gpu();

  // A step that was enqueued and whose result is not known.
  struct UnderWay {
    Index step = 0, tokens = 0, first_sample = 0, samples = 0, valid_tokens = 0;
    double lr = 0, begin = 0, wait_seconds = 0, stall_seconds = 0;
    StepLimits limits;
    const StepData* data = nullptr;  // the loader's; valid until the result is taken
  };

  const Config config_;
  World& world_;
  const Files& files_;
  const Clock& clock_;
  RunDirectory directory_;
  bool first_rank_;  // prints, logs, writes metrics
  bool quiet_;

  std::function<void(Engine&, Index)> before_step_;
  RunWatch watch_;
  std::optional<RunLock> lock_;
  std::unique_ptr<Log> log_;
  std::unique_ptr<ProcessGroup> agreed_;  // all ranks
  Groups loader_groups_, guard_groups_;
  std::unique_ptr<Engine> engine_;
  std::unique_ptr<TokenSources> sources_;
  std::unique_ptr<Sampler> sampler_;
  std::unique_ptr<Loader> loader_;
  std::unique_ptr<Evaluator> evaluator_;
  std::unique_ptr<Checkpointer> checkpointer_;
  std::unique_ptr<MetricsFile> metrics_;
  std::unique_ptr<TensorBoardFile> tensorboard_;
  std::unique_ptr<Progress> progress_;
  std::unique_ptr<StepTrace> trace_;
  Guard guard_;

  CheckpointState state_;  // of the steps enqueued; optimizer_step of those settled
  std::deque<UnderWay> under_way_;
  double settled_at_ = 0;  // when the last step's result was known
  bool stopped_ = false;
  bool evaluated_ = false;                       // at the step that the run goes on from
  std::optional<bool> forecast_;                 // said, and whether it was too long
  double check_seconds_ = 0, step_seconds_ = 0;  // of the guard's checks; of all steps
  Index checked_steps_ = 0;
  Index saved_step_ = -1;
  Index recorded_step_ = 0;  // of the last line of a step in the metrics
  std::int64_t failed_saves_ = 0;
  double pending_stall_ = 0;           // of the last save, for the next step's record
  double flops_ = 0, flops_full_ = 0;  // of a step, all ranks
  double peak_ = 0;                    // FLOP/s of this rank's GPU by the vendor's word; 0: not known
  double ceiling_ = 0;                 // FLOP/s that mfu is relative to, all ranks
};

}  // namespace dstrain
