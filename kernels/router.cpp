#include "kernels/router.h"

#include "kernels/check.h"

namespace dstrain {

namespace {

void check_matrix(const Tensor& t, DType dtype, Index rows, Index columns, const char* what) {
  check_shape(t, {rows, columns}, what);
  check_dtype(t, dtype, what);
  check_flat(t, what);
}

void check_rule(const RouterRule& r, Index experts, Index chosen) {
  check(experts >= 1 && experts <= kMostExperts, "route: {} experts, at most {}", experts, kMostExperts);
  check(r.groups >= 1 && experts % r.groups == 0, "route: {} experts in {} groups", experts, r.groups);
  check(r.top_groups >= 1 && r.top_groups <= r.groups, "route: {} of {} groups", r.top_groups, r.groups);
  check(r.group_best >= 1, "route: a group by {} experts", r.group_best);
  check(chosen >= 1 && chosen <= experts / r.groups * r.top_groups, "route: {} of the {} experts of {} groups", chosen,
        experts / r.groups * r.top_groups, r.top_groups);
}

}  // namespace

void Route::validate() const {
  check_rank(logits, 2, "route: logits");
  check_rank(experts, 2, "route: experts");
  const Index rows = logits.dim(0), all = logits.dim(1), chosen = experts.dim(1);
  check_matrix(logits, DType::f32, rows, all, "route: logits");
  check_matrix(scores, DType::f32, rows, all, "route: scores");
  check_matrix(experts, DType::i32, rows, chosen, "route: experts");
  check_matrix(weights, DType::f32, rows, chosen, "route: weights");
  check_rule(rule, all, chosen);
  if (bias.defined()) check_vector(bias, DType::f32, all, "route: bias");
}

Cost Route::cost() const { return {0, 0, bytes_of({&scores, &experts, &weights, &logits, &bias})}; }

void RouteGradient::validate() const {
  check_rank(scores, 2, "route_gradient: scores");
  check_rank(experts, 2, "route_gradient: experts");
  const Index rows = scores.dim(0), all = scores.dim(1), chosen = experts.dim(1);
  check_matrix(scores, DType::f32, rows, all, "route_gradient: scores");
  check_matrix(dlogits, DType::f32, rows, all, "route_gradient: dlogits");
  check_matrix(experts, DType::i32, rows, chosen, "route_gradient: experts");
  check_matrix(dweights, DType::f32, rows, chosen, "route_gradient: dweights");
  check_rule(rule, all, chosen);
  if (!balance.defined()) return;
  check_rank(balance, 2, "route_gradient: balance");
  check_matrix(balance, DType::f32, balance.dim(0), all, "route_gradient: balance");
  check(balance.dim(0) > 0 && rows % balance.dim(0) == 0, "route_gradient: {} rows in {} sequences", rows,
        balance.dim(0));
}

Cost RouteGradient::cost() const { return {0, 0, bytes_of({&dlogits, &dweights, &scores, &experts, &balance})}; }

void ExpertOrder::validate() const {
  check_rank(experts, 2, "expert_order: experts");
  check_rank(offsets, 1, "expert_order: offsets");
  const Index n = experts.numel();
  check_matrix(experts, DType::i32, experts.dim(0), experts.dim(1), "expert_order: experts");
  check(groups() >= 1 && groups() <= kMostExperts && first >= 0 && width >= 1,
        "expert_order: {} groups of {} experts from {}", groups(), width, first);
  check_vector(offsets, DType::i32, groups() + 1, "expert_order: offsets");
  check_matrix(place, DType::i32, experts.dim(0), experts.dim(1), "expert_order: place");
  check_rank(choice_at, 1, "expert_order: choice_at");
  check(choice_at.dim(0) <= n, "expert_order: {} places for {} choices", choice_at.dim(0), n);
  check_vector(choice_at, DType::i32, choice_at.dim(0), "expert_order: choice_at");
  check_vector(row_at, DType::i32, choice_at.dim(0), "expert_order: row_at");
  check(n < (Index{1} << 31), "expert_order: {} choices", n);
}

Cost ExpertOrder::cost() const { return {0, 0, bytes_of({&offsets, &place, &choice_at, &row_at, &experts})}; }

// CUDA: counts of each group in each block of choices.
std::size_t ExpertOrder::workspace(Device target) const {
  if (target != Device::cuda) return 0;
  constexpr Index kBlock = 1024;
  const Index blocks = (experts.numel() + kBlock - 1) / kBlock;
  return arena_bytes({static_cast<std::size_t>(blocks * groups()) * sizeof(std::int32_t)});
}

void ExpertCounts::validate() const {
  check_rank(counts, 1, "expert_counts: counts");
  check_vector(counts, DType::f32, counts.dim(0), "expert_counts: counts");
  check_vector(offsets, DType::i32, counts.dim(0) + 1, "expert_counts: offsets");
}

Cost ExpertCounts::cost() const { return {0, 0, bytes_of({&counts, &offsets})}; }

void SequenceLoad::validate() const {
  check_rank(scores, 2, "sequence_load: scores");
  check_rank(load, 2, "sequence_load: load");
  const Index rows = scores.dim(0), all = scores.dim(1), sequences = load.dim(0);
  check_matrix(scores, DType::f32, rows, all, "sequence_load: scores");
  check_matrix(load, DType::f32, sequences, all, "sequence_load: load");
  check(sequences > 0 && rows % sequences == 0, "sequence_load: {} rows in {} sequences", rows, sequences);
  check(all <= kMostExperts && top >= 1 && top <= all, "sequence_load: {} of {} experts", top, all);
}

Cost SequenceLoad::cost() const { return {0, 0, bytes_of({&load, &scores})}; }

void BalanceUpdate::validate() const {
  check_rank(bias, 1, "balance_update: bias");
  check_vector(bias, DType::f32, bias.dim(0), "balance_update: bias");
  check_vector(counts, DType::f32, bias.dim(0), "balance_update: counts");
  check_vector(scalars, DType::f32, 4, "balance_update: scalars");
  check(bias.dim(0) <= kMostExperts, "balance_update: {} experts", bias.dim(0));
}

Cost BalanceUpdate::cost() const { return {0, 0, bytes_of({&bias, &counts})}; }

}  // namespace dstrain
