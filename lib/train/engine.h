#pragma once
// Engine: one rank's model, memory, groups and optimizer, and the training step made of them. On Device::dry the same
// code counts instead of computing: that is how the plan knows its numbers.

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "lib/comm/world.h"
#include "lib/config/config.h"
#include "lib/core/stream.h"
#include "lib/optim/optimizer.h"
#include "lib/optim/param_arena.h"
#include "lib/pipeline/executor.h"
#include "lib/pipeline/stage.h"

namespace dstrain {

// What a dry engine found and a real one allocates.
struct EngineSizes {
  Stage::Sizes stage;
  std::size_t workspace = 0;
};

// Bytes of one rank by purpose, in the order of printing.
struct MemoryRow {
  std::string purpose;
  std::size_t bytes = 0;
};

struct StepResult {
  double loss = 0;       // mean over the valid tokens of the step
  double grad_norm = 0;  // before clipping
  bool finite = true;    // false: the update was not applied, on any rank
  bool stop = false;     // a rank asked to stop
};

// The part of a step that every rank must know the same of: counts of micro-batches follow from the config alone.
struct StepShape {
  Index micro_batches = 0;  // a step and data rank
  Index micro_batch_size = 0;
  Index length = 0;
};
StepShape step_shape(const Config& config);

class Engine {
 public:
  // `config` is resolved; the mesh has world.size() ranks. `threads` counts the pool's; ignored on Device::dry.
  Engine(const Config& config, World& world, const Mesh& mesh, Device device, int threads, const EngineSizes& sizes);

  // Sets the weights to the values of (seed, name); optimizer state and gradients to 0.
  void initialize(std::uint64_t seed);

  // One optimizer step over this data rank's micro-batches (step_shape().micro_batches of them). `valid_tokens` is the
  // global sum of loss weights. `update` counts applied updates, this one included. `stop` is this rank's vote.
  StepResult train_step(std::span<const Batch> micro_batches, double valid_tokens, double lr, std::int64_t update,
                        bool stop);
  // The phases of a step before clipping: gradients reduced, norm and loss known on every rank.
  StepResult gradients(std::span<const Batch> micro_batches, double valid_tokens, bool stop);
  // The sum of weight * negative log likelihood over the micro-batches of all data ranks.
  double evaluate(std::span<const Batch> micro_batches);

  const Config& config() const { return config_; }
  const Mesh& mesh() const { return mesh_; }
  const Coordinates& coordinates() const { return at_; }
  const Groups& groups() const { return groups_; }
  Stage& stage() { return *stage_; }
  Stream& stream() { return stream_; }
  ThreadPool& pool() { return *pool_; }
  const ParamArena& params() const { return *params_; }
  void count_into(Ledger* ledger) { stream_.set_ledger(ledger); }

  EngineSizes used() const;  // found so far
  // As allocated; on Device::dry as found so far. Groups allocate their scratch with the first step.
  std::vector<MemoryRow> memory() const;

 private:
  Config config_;
  Mesh mesh_;
  Coordinates at_;
  Device device_;
  std::unique_ptr<ThreadPool> pool_;
  Arena workspace_;
  Stream stream_;
  Groups groups_;
  std::unique_ptr<Stage> stage_;
  std::unique_ptr<ParamArena> params_;
  Arena scalars_;
  std::unique_ptr<Optimizer> optimizer_;
  Tensor result_;  // (3) f64: squared norm, loss sum, stop votes
  Program train_program_, eval_program_;
};

// The pipeline program of a job's training step, for all stages.
Program train_program(const Config& config);

}  // namespace dstrain
