#pragma once
// Softmax cross-entropy over a vocabulary split among ranks: stats on each rank, an all-gather, finish on each rank.

#include "kernels/op.h"

namespace dstrain {

// Per row: max, sum of exp(logit - max), and the target's logit (0 when its column is not here). Column c is the
// vocabulary's first_column + c. Columns >= valid_columns (local; -1: all are valid) are padding and ignored. With no
// valid column: max = -inf, sum = 0.
struct CrossEntropyStats {
  static constexpr const char* name = "cross_entropy_stats";
  Tensor stats;    // (rows, 3) f32
  Tensor logits;   // (rows, V) strided rows
  Tensor targets;  // (rows) i32
  Index first_column = 0;
  Index valid_columns = -1;

  void validate() const;
  Cost cost() const;
  std::array<Tensor, 1> outputs() const { return {stats}; }
};
void run(Cpu, Stream& stream, const CrossEntropyStats& op);
void run(Cuda, Stream& stream, const CrossEntropyStats& op);

// Merges stats in rank order; loss += sum over the rows of weight * (log(sum) + max - target logit), in a fixed order
// in float64. If gradient, logits become scale * weight * (softmax - onehot), padding columns 0. A row of weight 0 adds
// exactly 0 to both, whatever its logits and target.
struct CrossEntropyFinish {
  static constexpr const char* name = "cross_entropy_finish";
  Tensor loss;     // (1) f64, added to
  Tensor logits;   // (rows, V) strided rows; overwritten if gradient
  Tensor stats;    // (ranks, rows, 3) f32
  Tensor targets;  // (rows) i32
  Tensor weights;  // (rows) f32
  Index first_column = 0;
  Index valid_columns = -1;
  Tensor scale = {};  // (1) f32; needed if gradient
  bool gradient = true;

  void validate() const;
  Cost cost() const;
  std::array<Tensor, 1> outputs() const { return {loss}; }
  std::size_t workspace(Device target) const;
};
void run(Cpu, Stream& stream, const CrossEntropyFinish& op);
void run(Cuda, Stream& stream, const CrossEntropyFinish& op);

// Both in one, for a vocabulary that is whole on this rank: logits are read once where a GPU can keep a row.
struct CrossEntropy {
  static constexpr const char* name = "cross_entropy";
  Tensor loss;     // (1) f64, added to
  Tensor logits;   // (rows, V) strided rows; overwritten if gradient
  Tensor targets;  // (rows) i32
  Tensor weights;  // (rows) f32
  Index valid_columns = -1;
  Tensor scale = {};  // (1) f32; needed if gradient
  bool gradient = true;

  void validate() const;
  Cost cost() const;
  std::size_t workspace(Device target) const;
  std::array<Tensor, 1> outputs() const { return {loss}; }

  // The two ops that it stands for; `stats` is (rows, 3) f32.
  CrossEntropyStats first(const Tensor& stats) const {
    return {.stats = stats, .logits = logits, .targets = targets, .valid_columns = valid_columns};
  }
  CrossEntropyFinish second(const Tensor& stats) const {
    return {.loss = loss,
            .logits = logits,
            .stats = stats.view({1, logits.dim(0), 3}),
            .targets = targets,
            .weights = weights,
            .valid_columns = valid_columns,
            .scale = scale,
            .gradient = gradient};
  }
};
void run(Cpu, Stream& stream, const CrossEntropy& op);
void run(Cuda, Stream& stream, const CrossEntropy& op);

}  // namespace dstrain
