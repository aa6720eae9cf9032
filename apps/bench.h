#pragma once
// What the benches share: a job's rank made as a run makes it, random batches, order statistics.

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "apps/commands.h"
#include "lib/train/machine.h"

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
  // `pinned`: for a GPU to copy from.
  RandomData(const Config& config, bool pinned);
  std::span<const Batch> batches() const { return batches_; }

 private:
  Buffer memory_;
  std::vector<Batch> batches_;
};

// This process's rank of a job, with initial weights, and its training step on random tokens.
class BenchJob {
 public:
  explicit BenchJob(const JobOptions& options);

  // One update. Returns its loss.
  double step();
  // So many as a run does them, results taken a step late where the device allows it: the seconds from one result to
  // the next, after a first step that is not counted.
  std::vector<double> steps(int count);
  double tokens() const { return tokens_.next; }  // of a step, all ranks

  std::unique_ptr<World> world;
  Config config;
  Mesh mesh;
  Device device;
  RankPlan plan;
  std::unique_ptr<Engine> engine;

 private:
  RandomData data_;
  static Device start_device(const Config& config, World& world);

  ValidTokens tokens_;
};

// The value below which the share q of the values lie; q = 0.5: the median. REQUIRES: some values.
double quantile(std::vector<double> values, double q);

// The subcommands of bench; each is declared on its own CLI::App.
RunCommand add_bench_ops(CLI::App& command);
RunCommand add_bench_step(CLI::App& command);
RunCommand add_bench_checkpoint(CLI::App& command);
RunCommand add_bench_loader(CLI::App& command);
RunCommand add_bench_tokenizer(CLI::App& command);

}  // namespace dstrain
