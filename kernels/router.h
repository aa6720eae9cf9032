#pragma once
// Routers of mixtures of experts, in float32: DeepSeek-V3's (arXiv 2412.19437, sigmoid scores, a bias that balances the
// choice, node-limited groups) and DeepSeek-V2's (arXiv 2405.04434, softmax; greedy or group-limited). No token is
// dropped.

#include "kernels/op.h"

namespace dstrain {

enum class RouterScores : unsigned char { sigmoid, softmax };

// How experts are chosen from scores.
struct RouterRule {
  RouterScores scoring = RouterScores::sigmoid;
  Index groups = 1;       // experts in equal consecutive groups
  Index top_groups = 1;   // groups that are kept
  Index group_best = 2;   // a group's score is the sum of so many of its best: 2 in V3, 1 in V2
  bool normalize = true;  // weights are divided by their sum + 1e-20
  float scale = 1;        // weights are multiplied by it
};
constexpr Index kMostExperts = 1024;

// scores = sigmoid or softmax of the logits. Of scores + bias the best groups are kept, then the best K experts in
// them; ties go to the lower index, NaN loses against every number. experts lists them in ascending order; weights come
// from the scores alone.
struct Route {
  static constexpr const char* name = "route";
  Tensor scores;     // (rows, E) f32
  Tensor experts;    // (rows, K) i32
  Tensor weights;    // (rows, K) f32
  Tensor logits;     // (rows, E) f32; may be scores
  Tensor bias = {};  // (E) f32
  RouterRule rule;

  void validate() const;
  Cost cost() const;
  std::array<Tensor, 2> outputs() const { return {scores, weights}; }
};
void run(Cpu, Stream& stream, const Route& op);
void run(Cuda, Stream& stream, const Route& op);

// dlogits from the gradient of the weights; the choice itself and the bias have none. With `balance` also that of
//   coefficient * sum over sequences and experts of balance[sequence, e] * sum over the sequence's tokens of
//   scores[t, e] / sum over e of scores[t, e]
// (the sequence-wise balance loss: balance is f of its sequence, coefficient alpha / T and what the caller averages
// by).
struct RouteGradient {
  static constexpr const char* name = "route_gradient";
  Tensor dlogits;       // (rows, E) f32
  Tensor dweights;      // (rows, K) f32
  Tensor scores;        // (rows, E) f32
  Tensor experts;       // (rows, K) i32
  Tensor balance = {};  // (sequences, E) f32; rows / sequences tokens each, one after another
  float coefficient = 0;
  RouterRule rule;

  void validate() const;
  Cost cost() const;
  std::array<Tensor, 1> outputs() const { return {dlogits}; }
};
void run(Cpu, Stream& stream, const RouteGradient& op);
void run(Cuda, Stream& stream, const RouteGradient& op);

// Sorts the rows * K choices by group of `width` experts, the first group beginning with expert `first`; those of a
// group by row: choice c = row * K + k lies at place[c], and choice_at[place[c]] = c, row_at[place[c]] = row. Group g
// has places [offsets[g], offsets[g + 1]). A choice of no group, or `distinct` and in the group of the choice before it
// in its row, has no place: -1. choice_at and row_at hold P >= offsets[G] places; what is past the last one is left.
struct ExpertOrder {
  static constexpr const char* name = "expert_order";
  Tensor offsets;    // (G + 1) i32
  Tensor place;      // (rows, K) i32
  Tensor choice_at;  // (P) i32
  Tensor row_at;     // (P) i32
  Tensor experts;    // (rows, K) i32, ascending in a row
  Index first = 0, width = 1;
  bool distinct = false;

  void validate() const;
  Cost cost() const;
  std::array<Tensor, 0> outputs() const { return {}; }
  std::size_t workspace(Device target) const;
  Index groups() const { return offsets.dim(0) - 1; }
};
void run(Cpu, Stream& stream, const ExpertOrder& op);
void run(Cuda, Stream& stream, const ExpertOrder& op);

// counts (+)= tokens of each expert.
struct ExpertCounts {
  static constexpr const char* name = "expert_counts";
  Tensor counts;   // (E) f32: exact to 2^24
  Tensor offsets;  // (E + 1) i32
  Write write = Write::overwrite;

  void validate() const;
  Cost cost() const;
  std::array<Tensor, 1> outputs() const { return {counts}; }
};
void run(Cpu, Stream& stream, const ExpertCounts& op);
void run(Cuda, Stream& stream, const ExpertCounts& op);

// f of the sequence-wise balance loss (arXiv 2412.19437, equation 18): f[sequence, e] = E / (K T) * the sequence's
// tokens of which e is among the K best by score, bias and groups aside.
struct SequenceLoad {
  static constexpr const char* name = "sequence_load";
  Tensor load;    // (sequences, E) f32
  Tensor scores;  // (rows, E) f32; rows / sequences tokens each
  Index top = 1;  // K

  void validate() const;
  Cost cost() const;
  std::array<Tensor, 1> outputs() const { return {load}; }
};
void run(Cpu, Stream& stream, const SequenceLoad& op);
void run(Cuda, Stream& stream, const SequenceLoad& op);

// bias += rate * sign(mean of counts - count), once a step over the whole batch (arXiv 2412.19437, 2.1.2; arXiv
// 2408.15664). Does nothing when the step's clip coefficient is not finite, as AdamW.
struct BalanceUpdate {
  static constexpr const char* name = "balance_update";
  Tensor bias;     // (E) f32, updated
  Tensor counts;   // (E) f32
  Tensor scalars;  // (4) f32 as AdamW reads them
  float rate = 0;

  void validate() const;
  Cost cost() const;
  std::array<Tensor, 1> outputs() const { return {bias}; }
};
void run(Cpu, Stream& stream, const BalanceUpdate& op);
void run(Cuda, Stream& stream, const BalanceUpdate& op);

}  // namespace dstrain
