#pragma once
// What the benches share: a job's rank made as a run makes it, random batches, order statistics.

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "apps/commands.h"
#include "lib/train/plan.h"

namespace dstrain {

struct JobOptions {
  std::string job;
  std::vector<std::string> overrides;

  // Declares the positional JOB and key=value arguments.
  void declare(CLI::App& command);
};

// Micro-batches of a step of random tokens, every position trained on.
class RandomData {
 public:
  explicit RandomData(const Config& config);
  std::span<const Batch> batches() const { return batches_; }

 private:
  std::vector<std::int32_t> tokens_, targets_, positions_;
  std::vector<std::int64_t> samples_, row_samples_;
  std::vector<float> weights_;
  std::vector<Batch> batches_;
};

// This process's rank of a job, with initial weights, and its training step on random tokens.
class BenchJob {
 public:
  explicit BenchJob(const JobOptions& options);

  // One update. Returns its loss.
  double step();
  double tokens() const { return tokens_; }  // of a step, all ranks

  std::unique_ptr<World> world;
  Config config;
  Mesh mesh;
  RankPlan plan;
  std::unique_ptr<Engine> engine;

 private:
  RandomData data_;
  double tokens_;
  std::int64_t update_ = 0;
};

// The value below which the share q of the values lie; q = 0.5: the median. REQUIRES: some values.
double quantile(std::vector<double> values, double q);

// The subcommands of bench; each is declared on its own CLI::App.
RunCommand add_bench_ops(CLI::App& command);
RunCommand add_bench_step(CLI::App& command);
RunCommand add_bench_checkpoint(CLI::App& command);
RunCommand add_bench_loader(CLI::App& command);

}  // namespace dstrain
