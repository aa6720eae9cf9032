#pragma once
// The training loop, and what surrounds a step: data, evaluation, checkpoints, metrics, the end of a run.

#include <memory>
#include <optional>

#include "lib/checkpoint/run_lock.h"
#include "lib/config/config.h"
#include "lib/core/clock.h"
#include "lib/core/files.h"
#include "lib/observe/log.h"
#include "lib/observe/progress.h"
#include "lib/train/checkpointer.h"
#include "lib/train/evaluate.h"
#include "lib/train/plan.h"
#include "lib/train/run_directory.h"
#include "lib/train/stop_signal.h"

namespace dstrain {

class Trainer {
 public:
  // One rank of the resolved job. Everything is borrowed. `quiet`: nothing on the terminal (tests).
  Trainer(const Config& config, World& world, const Files& files, const Clock& clock, bool quiet = false);
  ~Trainer();

  // Trains until training.steps or a stop signal; resumes when the run directory holds a checkpoint. Returns ok or
  // stopped; throws Error with the documented code otherwise. Either way exit.json says how it ended.
  ExitCode run();

 private:
  void start();
  void loop();
  void restore_latest_or_initialize();
  StepRecord train_step();
  void evaluate();
  void save();
  void report_saves(std::vector<Checkpointer::Outcome> outcomes, bool last);
  void finish();
  bool due(std::int64_t every) const { return every > 0 && state_.step % every == 0; }
  void print_start(const RankPlan& plan);

  const Config config_;
  World& world_;
  const Files& files_;
  const Clock& clock_;
  RunDirectory directory_;
  bool first_rank_;  // prints, logs, writes metrics
  bool quiet_;

  StopSignal signal_;
  std::optional<RunLock> lock_;
  std::unique_ptr<Log> log_;
  Groups checkpoint_groups_, loader_groups_;
  std::unique_ptr<Engine> engine_;
  std::unique_ptr<TokenSources> sources_;
  std::unique_ptr<Sampler> sampler_;
  std::unique_ptr<Loader> loader_;
  std::unique_ptr<Evaluator> evaluator_;
  std::unique_ptr<Checkpointer> checkpointer_;
  std::unique_ptr<MetricsFile> metrics_;
  std::unique_ptr<Progress> progress_;

  CheckpointState state_;
  bool stopped_ = false;
  Index saved_step_ = -1;
  std::int64_t failed_saves_ = 0;
  double pending_stall_ = 0;           // of the last save, for the next step's record
  double flops_ = 0, flops_full_ = 0;  // of a step, all ranks
  double ceiling_ = 0;                 // FLOP/s, all ranks
};

// The threads of a rank's pool: run.threads; else the cores that the launcher bound the rank to; else the host's cores
// divided by its ranks.
int pool_threads(const Config& config, const World& world);
// The device that the job asks for. Throws Error{device} when this build or machine has none.
Device run_device(const Config& config);

}  // namespace dstrain
