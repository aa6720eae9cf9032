#pragma once
// Engine: one rank's model, memory, groups and optimizer, and the training step made of them. On Device::dry the same
// code counts instead of computing: that is how the plan knows its numbers.

#include <array>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "lib/comm/world.h"
#include "lib/config/config.h"
#include "lib/core/gpu.h"
#include "lib/core/stream.h"
#include "lib/layers/expert_exchange.h"
#include "lib/layers/mtp_targets.h"
#include "lib/optim/optimizer.h"
#include "lib/optim/param_arena.h"
#include "lib/pipeline/executor.h"
#include "lib/pipeline/stage.h"
#include "lib/train/guard.h"
#include "lib/train/job_shape.h"
#include "lib/train/op_watch.h"

namespace dstrain {

// What an engine is for. Without training it holds neither gradients, moments nor master weights.
enum class EngineUse : unsigned char {
  training,    // everything
  evaluation,  // evaluate and evaluate_samples
  generation,  // decode
};

// What a dry engine found and a real one allocates.
struct EngineSizes {
  Stage::Sizes stage;
  std::size_t workspace = 0;
};

// Bytes of one rank by purpose, in the order of printing.
struct MemoryRow {
  std::string purpose;
  std::size_t bytes = 0;
  bool host = false;  // in host memory though ops run on a GPU
};

struct StepResult {
  double loss = 0;           // mean over the valid tokens of the step
  double mtp_loss = 0;       // of multi-token prediction: mean over its depths of each one's mean; 0 without
  double grad_norm = 0;      // before clipping
  bool finite = true;        // loss, norm and weights; false: the update was not applied, on any rank
  bool weights_good = true;  // those that the step began with
  bool within = true;        // the limits; false: as for finite
  bool stop = false;         // a rank asked to stop
  std::int64_t updates = 0;  // applied so far, this step's included
  // Tokens of each expert, all data ranks' together: one row a mixture of experts in the model's order.
  std::vector<std::vector<float>> expert_tokens;
  // When the step was checked, kRankSums sums a rank, in order of ranks: the gradient of the first micro-batch,
  // computed twice, and the state that the step began with, without and of experts that are spread over ranks. Those
  // not asked for are 0.
  std::vector<std::int64_t> sums;
  double check_seconds = 0;  // that the checks took on this rank
};

// What a step does beside training.
struct StepChecks {
  bool recompute = false;  // run the first micro-batch twice
  bool replicas = false;   // sum up weights and moments
  bool any() const { return recompute || replicas; }
};

class Engine {
 public:
  // `config` is resolved; the mesh has world.size() ranks. On Device::cuda memory is on the calling thread's GPU.
  // `target`, cpu or cuda, is the device that a dry engine plans for; the same as `device` otherwise. `threads` counts
  // the pool's; ignored on Device::dry.
  Engine(const Config& config, World& world, const Mesh& mesh, Device device, Device target, int threads,
         const EngineSizes& sizes, EngineUse use = EngineUse::training);
  // While an exception unwinds, ends what peers and this rank's GPU wait for: freeing its memory would wait for that.
  ~Engine();

  // Sets the weights to the values of (seed, name); optimizer state and gradients, if there are any, to 0.
  void initialize(std::uint64_t seed);
  // CUDA: runs a micro-batch of random tokens so that the kernels can measure their alternatives; `known` are choices
  // of an earlier run. Returns all choices, as text to keep. Gradients are 0 again afterwards. Nothing elsewhere.
  std::string tune(const std::string& known);
  // Applied updates so far, of a restored run.
  void set_updates(std::int64_t applied) { optimizer_->set_updates(applied); }

  // Enqueues one optimizer step over this data rank's micro-batches (step_shape().micro_batches of them, in host
  // memory, page-locked for CUDA, unchanged until its result was taken). `valid_tokens` are the global sums of loss
  // weights. `stop` is this rank's vote. A loss or norm beyond `limits` (the same on every rank) leaves the update out.
  // At most two steps may be without their result taken.
  void enqueue_step(std::span<const Batch> micro_batches, const ValidTokens& valid_tokens, double lr, bool stop,
                    const StepLimits& limits = {}, const StepChecks& checks = {});
  // The result of the oldest step not yet asked for; waits for it.
  StepResult take_result();
  // Steps that may be under way while the next is enqueued: 0 on the CPU, where enqueueing is running.
  std::size_t lag() const { return device_ == Device::cuda ? 1 : 0; }
  // Both of them.
  StepResult train_step(std::span<const Batch> micro_batches, const ValidTokens& valid_tokens, double lr, bool stop,
                        const StepLimits& limits = {}, const StepChecks& checks = {});
  // The phases of a step before the update: gradients reduced, norm and loss known on every rank.
  StepResult gradients(std::span<const Batch> micro_batches, const ValidTokens& valid_tokens, bool stop);
  // Forward and backward alone: gradients are this rank's own, not reduced. Collective over stages and tensor ranks.
  void local_gradients(std::span<const Batch> micro_batches, const ValidTokens& valid_tokens);
  // The weight of the further tokens' loss in steps that are enqueued from now on; at first mtp.loss_weight.
  void set_mtp_loss_weight(double weight) { mtp_loss_weight_ = weight; }
  // The sum of weight * negative log likelihood over the micro-batches of all data ranks.
  double evaluate(std::span<const Batch> micro_batches);
  // The same for each sample of the step: of data rank 0's micro-batches in their order, then of data rank 1's, ... On
  // every rank.
  std::vector<double> evaluate_samples(std::span<const Batch> micro_batches);
  // Passes up to micro_batch_size samples through all stages in Mode::decode; the cache is this stage's. On the last
  // stage `logits` (B, vocabulary of a tensor rank) f32 become those of each sample's last position; elsewhere it is
  // ignored. Collective over stages and tensor ranks. Returns when it is done; cache.length is the caller's.
  void decode(const Batch& batch, KvCache& cache, const Tensor& logits);
  // The next update waits for `event`, which must live until then.
  void update_after(const gpu::Event& event) { update_after_ = &event; }

  const Config& config() const { return config_; }
  const Mesh& mesh() const { return mesh_; }
  const Coordinates& coordinates() const { return at_; }
  const Groups& groups() const { return groups_; }
  Stage& stage() { return *stage_; }
  Stream& stream() { return stream_; }
  ThreadPool& pool() { return *pool_; }
  const ParamArena& params() const { return *params_; }
  bool graphs() const { return graphs_; }
  bool overlaps() const { return gradient_queue_.has_value(); }  // gradients are reduced beside backward
  void count_into(Ledger* ledger) { stream_.set_ledger(ledger); }
  // Whether passes are recorded; for measuring ops one by one.
  void set_graphs(bool on) { graphs_ = on; }

  // State and gradients of a parameter in host memory, laid out as the Param; between steps only.
  std::vector<float> read(const Param& param, Role role);
  void write(const Param& param, Role role, const std::vector<float>& values);
  std::vector<float> gradient(const Param& param);

  EngineSizes used() const;  // found so far
  // As allocated; on Device::dry as found so far. Groups allocate their scratch with the first step.
  std::vector<MemoryRow> memory() const;

 private:
  // What the host hands to a step and what it gets back; page-locked on CUDA.
  struct Exchange {
    double vote = 0;
    double result[4 + kMostMtpDepths] = {};
    double limits[2] = {};
    std::int64_t updates[2] = {};
    float lr = 0;
    float loss_scales[1 + kMostMtpDepths] = {};
  };
  static constexpr std::size_t kRing = 3;
  Exchange& exchange(std::size_t step) { return *reinterpret_cast<Exchange*>(ring_.data() + step % kRing * 256); }
  void enqueue_gradients(std::span<const Batch> micro_batches, const ValidTokens& valid_tokens, double lr, bool stop,
                         const StepLimits& limits, const StepChecks& checks);
  // 1 / valid tokens, then of each depth of multi-token prediction its weight over its valid tokens.
  std::vector<float> loss_scales(const ValidTokens& valid_tokens) const;
  // Of a training pass: the losses' scales and places, shares of sequence-wise losses.
  PassOptions train_options(std::span<const Batch> micro_batches) const;
  Tensor losses() const { return result_.slice(0, 1, 2 + mtp_depths_); }
  // To memory of the rings, which a GPU's kernels reach: a snapshot's copy to the host that is under way is not waited
  // for.
  void to_host(void* to, const Tensor& from);
  void enqueue_result();
  void run_checks(std::span<const Batch> micro_batches, const StepChecks& checks);
  void sum_bits(std::size_t which, std::span<const Tensor> tensors);
  void clear_gradients();
  std::int64_t* sums_of(std::size_t step) {
    return reinterpret_cast<std::int64_t*>(sums_ring_.data()) +
           step % kRing * kRankSums * static_cast<std::size_t>(world_.size());
  }
  void reduce_ready(std::size_t layer);
  void find_experts();
  // The experts' tokens of all stages to the host.
  void enqueue_expert_tokens();
  float* expert_tokens_of(std::size_t step) {
    return reinterpret_cast<float*>(expert_ring_.data() + step % kRing * expert_tokens_.bytes());
  }
  void check_recordable();

  Config config_;
  World& world_;
  Mesh mesh_;
  Coordinates at_;
  Device device_, target_;
  std::optional<gpu::Queue> queue_;
  std::unique_ptr<ThreadPool> pool_;
  Arena workspace_;
  Stream stream_;
  Groups groups_;
  std::optional<gpu::Queue> expert_queue_;
  std::optional<Stream> expert_stream_;  // on which rows travel to experts beside other work; CUDA with a GPU a rank
  std::unique_ptr<ExpertExchange> experts_;
  std::unique_ptr<Stage> stage_;
  std::unique_ptr<ParamArena> params_;
  Arena scalars_;
  std::unique_ptr<Optimizer> optimizer_;
  // (4 + depths) f64: squared norm, loss sum, those of each depth of multi-token prediction, stop votes, ranks with bad
  // weights.
  Tensor result_;
  Tensor sums_;       // (kRankSums) i64: StepResult::sums of this rank
  Buffer all_sums_;   // (ranks, kRankSums) i64
  Buffer sums_ring_;  // of the host
  // Counts of all mixtures of experts, as the stages' ParamArenas have them one after another: rows of expert_stride_.
  Buffer expert_tokens_, expert_ring_;
  std::vector<std::size_t> expert_layers_;  // of each row, its place among the model's mixtures of experts
  Index expert_stride_ = 0, expert_rows_before_ = 0;
  std::array<bool, kRing> checked_{};
  std::array<double, kRing> check_seconds_{};        // CPU
  std::vector<gpu::Event> check_begin_, check_end_;  // CUDA
  Tensor loss_scales_;                               // (1 + depths) f32
  Buffer ring_;
  std::vector<gpu::Event> done_;  // one a place of the ring; CUDA
  std::vector<ValidTokens> valid_tokens_ = std::vector<ValidTokens>(kRing, ValidTokens(0));
  std::size_t enqueued_ = 0, taken_ = 0;  // steps
  const gpu::Event* update_after_ = nullptr;
  bool graphs_ = false;
  std::unique_ptr<DebugObserver> debug_;

  // Reduction of gradients beside the last backward: CUDA with data ranks that have a GPU each.
  std::optional<gpu::Queue> gradient_queue_;
  std::unique_ptr<ProcessGroup> gradient_group_, expert_gradient_group_;
  std::optional<Stream> gradient_stream_;
  std::optional<gpu::Event> layer_event_, reduced_event_;
  std::function<void(std::size_t)> layer_done_;
  Program train_program_, single_program_, eval_program_, decode_program_;
  EngineUse use_;
  Index mtp_depths_ = 0;  // that this engine trains
  double mtp_loss_weight_ = 0;
};

}  // namespace dstrain
