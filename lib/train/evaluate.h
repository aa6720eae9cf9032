#pragma once
// The loss on the held-out data: the same batches on all ranks, whatever their number.

#include <functional>

#include "lib/core/clock.h"
#include "lib/data/loader.h"
#include "lib/observe/metrics.h"
#include "lib/train/engine.h"

namespace dstrain {

class Evaluator {
 public:
  // Opens data.eval. Everything is borrowed. Throws Error{data}.
  Evaluator(const Config& config, const Files& files, const Clock& clock, Engine& engine);

  // Collective. The mean negative log likelihood over eval.samples samples (all of them when 0), in order.
  // `look` sees this data rank's micro-batches.
  // `stop`, collective, is asked between batches: when it says so, the record has no tokens and no loss.
  EvalRecord run(std::int64_t step, const std::function<void(const Batch&)>& look = {},
                 const std::function<bool()>& stop = {});

 private:
  const Clock& clock_;
  Engine& engine_;
  TokenSources sources_;
  Sampler sampler_;
  Index samples_;
  Index global_batch_;
  BatchReader reader_;
  StepData step_;
  Buffer memory_;
  Index tokens_ = 0;  // predicted, over all ranks
};

// Throws Error{data} when training.steps read a source of data.train more often than its epochs, of a run whose first
// `step` steps have read `samples` samples.
void require_train_epochs(const Config& config, const TokenSources& sources, const Sampler& sampler, Index step,
                          Index samples);
// The sampler of a job's data.train; require_train_epochs of a new run.
Sampler train_sampler(const Config& config, const TokenSources& sources);
// A line for each source: its share of the samples, its tokens and how often training.steps read it.
std::vector<std::string> describe_sources(const Config& config, const TokenSources& sources, const Sampler& sampler);
// Throws Error{data} unless data.tokenizer, when given, is the tokenizer that made the token files `info` is of.
void check_tokenizer(const Config& config, const Files& files, const TokenFileInfo& info, const std::string& tokens);
// The share of a data rank in a step of the job; `end`: samples at and past it are padding, -1: none. `pinned`: for a
// GPU to copy from. Only training, without an end, predicts further tokens.
BatchPlan data_plan(const Config& config, const Coordinates& at, Index end, bool pinned);

}  // namespace dstrain
