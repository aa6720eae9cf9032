#include "lib/layers/moe.h"

#include <utility>

#include "kernels/elementwise.h"
#include "kernels/experts.h"
#include "kernels/grouped_matmul.h"
#include "kernels/matmul.h"
#include "kernels/swiglu.h"

namespace dstrain {

struct Moe::Kept final : Saved {
  Norm::Kept norm;
  Tensor y;                              // (rows, C), normalised input
  Tensor scores;                         // (rows, E) f32
  Tensor experts, weights;               // (rows, K) i32, f32
  Tensor offsets;                        // (E + 1) i32
  Tensor place;                          // (rows, K) i32
  Tensor choice_at, row_at;              // (rows * K) i32
  Tensor gate_up;                        // (rows * K, 2F), in the experts' order
  Tensor shared_gate_up, shared_active;  // (rows, 2S), (rows, S)
};

Moe::Moe(MoeSpec spec, Norm norm, Param router, std::optional<Param> bias, Param gate_up, Param down,
         std::optional<Shared> shared)
    : spec_(spec),
      norm_(std::move(norm)),
      router_(std::move(router)),
      bias_(std::move(bias)),
      gate_up_(std::move(gate_up)),
      down_(std::move(down)),
      shared_(std::move(shared)) {}

void Moe::route(Context& context, Arena& memory, Kept& kept) const {
  const Index rows = kept.y.dim(0), k = spec_.chosen;
  kept.scores = memory.allocate({rows, spec_.experts});
  kept.experts = memory.allocate({rows, k}, DType::i32);
  kept.weights = memory.allocate({rows, k});
  kept.offsets = memory.allocate({spec_.experts + 1}, DType::i32);
  kept.place = memory.allocate({rows, k}, DType::i32);
  kept.choice_at = memory.allocate({rows * k}, DType::i32);
  kept.row_at = memory.allocate({rows * k}, DType::i32);
  launch(context.stream, Matmul{.c = kept.scores, .a = kept.y, .b = router_.compute, .transpose_b = true});
  launch(context.stream, Route{.scores = kept.scores,
                               .experts = kept.experts,
                               .weights = kept.weights,
                               .logits = kept.scores,
                               .bias = bias_ ? bias_->compute : Tensor{},
                               .rule = spec_.rule});
  launch(context.stream, ExpertOrder{.offsets = kept.offsets,
                                     .place = kept.place,
                                     .choice_at = kept.choice_at,
                                     .row_at = kept.row_at,
                                     .experts = kept.experts});
}

// Its part goes to context.branch.
void Moe::shared_forward(Context& context, Arena& memory, Kept& kept) const {
  const Index rows = kept.y.dim(0);
  const Param &gate_up = shared_->gate_up, &down = shared_->down;
  kept.shared_gate_up = memory.allocate({rows, gate_up.shape[0]}, kept.y.dtype);
  kept.shared_active = memory.allocate({rows, down.shape[1]}, kept.y.dtype);
  launch(context.stream, Matmul{.c = kept.shared_gate_up, .a = kept.y, .b = gate_up.compute, .transpose_b = true});
  launch(context.stream, SwiGluForward{.y = kept.shared_active, .gate_up = kept.shared_gate_up});
  launch(context.stream, Matmul{.c = context.branch, .a = kept.shared_active, .b = down.compute, .transpose_b = true});
}

Hidden Moe::forward(Context& context, const Batch&, const Hidden& x, std::unique_ptr<Saved>& saved) {
  const bool train = context.mode == Mode::train;
  const ArenaScope scope(context.scratch);
  Arena& memory = train ? context.saved : context.scratch;
  const DType dtype = x.residual.dtype;
  const Index rows = x.residual.dim(0), columns = x.residual.dim(1), places = rows * spec_.chosen;

  auto kept = std::make_unique<Kept>();
  kept->y = memory.allocate(x.residual.shape, dtype);
  kept->norm = norm_.forward(context, x, kept->y);
  route(context, memory, *kept);
  kept->gate_up = memory.allocate({places, gate_up_.shape[0] / spec_.experts}, dtype);
  launch(context.stream, GroupedMatmul{.c = kept->gate_up,
                                       .a = kept->y,
                                       .b = gate_up_.compute,
                                       .offsets = kept->offsets,
                                       .rows_of = kept->row_at,
                                       .transpose_b = true});
  const Tensor active = context.scratch.allocate({places, down_.shape[1]}, dtype);
  launch(context.stream, SwiGluForward{.y = active, .gate_up = kept->gate_up});
  const Tensor outputs = context.scratch.allocate({places, columns}, dtype);
  launch(context.stream,
         GroupedMatmul{.c = outputs, .a = active, .b = down_.compute, .offsets = kept->offsets, .transpose_b = true});
  if (shared_) shared_forward(context, memory, *kept);
  launch(context.stream, ExpertSum{.y = context.branch,
                                   .x = outputs,
                                   .place = kept->place,
                                   .weights = kept->weights,
                                   .start = shared_ ? context.branch : Tensor{}});
  if (context.tensor.size() > 1) context.tensor.all_reduce(context.stream, context.branch);
  const Hidden out{kept->norm.sum, context.branch};
  if (train) saved = std::move(kept);
  return out;
}

void Moe::shared_backward(Context& context, const Kept& kept, const Tensor& dy, const Tensor& dnorm) const {
  const ArenaScope scope(context.scratch);
  const Param &gate_up = shared_->gate_up, &down = shared_->down;
  const Tensor dactive = context.scratch.allocate(kept.shared_active.shape, dy.dtype);
  launch(context.stream, Matmul{.c = dactive, .a = dy, .b = down.compute});
  launch(context.stream,
         Matmul{.c = down.gradient, .a = dy, .b = kept.shared_active, .transpose_a = true, .write = context.write});
  // In place: what was before the activation is not needed again.
  const Tensor& dgate_up = kept.shared_gate_up;
  launch(context.stream, SwiGluBackward{.dgate_up = dgate_up, .dy = dactive, .gate_up = kept.shared_gate_up});
  launch(context.stream, Matmul{.c = dnorm, .a = dgate_up, .b = gate_up.compute});
  launch(context.stream,
         Matmul{.c = gate_up.gradient, .a = dgate_up, .b = kept.y, .transpose_a = true, .write = context.write});
}

void Moe::experts_backward(Context& context, const Kept& kept, const Tensor& dy, const Tensor& dweights,
                           const Tensor& dnorm) const {
  const ArenaScope scope(context.scratch);
  const Index places = kept.row_at.dim(0);
  const Tensor d = context.scratch.allocate({places, down_.shape[1]}, dy.dtype);
  launch(context.stream,
         GroupedMatmul{.c = d, .a = dy, .b = down_.compute, .offsets = kept.offsets, .rows_of = kept.row_at});
  launch(context.stream, ExpertActivationGradient{.dgate_up = kept.gate_up,
                                                  .weighted = d,
                                                  .dweights = dweights,
                                                  .d = d,
                                                  .gate_up = kept.gate_up,
                                                  .weights = kept.weights,
                                                  .choice_at = kept.choice_at});
  launch(context.stream, GroupedGradient{.c = down_.gradient,
                                         .a = dy,
                                         .b = d,
                                         .offsets = kept.offsets,
                                         .a_rows_of = kept.row_at,
                                         .rows = places,
                                         .write = context.write});
  launch(context.stream, GroupedGradient{.c = gate_up_.gradient,
                                         .a = kept.gate_up,
                                         .b = kept.y,
                                         .offsets = kept.offsets,
                                         .b_rows_of = kept.row_at,
                                         .rows = places,
                                         .write = context.write});
  const Tensor dx = context.scratch.allocate({places, dy.dim(1)}, dy.dtype);
  launch(context.stream, GroupedMatmul{.c = dx, .a = kept.gate_up, .b = gate_up_.compute, .offsets = kept.offsets});
  launch(context.stream, ExpertSum{.y = dnorm, .x = dx, .place = kept.place, .start = shared_ ? dnorm : Tensor{}});
}

void Moe::router_backward(Context& context, const Batch& batch, const Kept& kept, const Tensor& dweights,
                          const Tensor& dnorm) const {
  const ArenaScope scope(context.scratch);
  const Tensor dlogits = context.scratch.allocate(kept.scores.shape);
  RouteGradient gradient{
      .dlogits = dlogits, .dweights = dweights, .scores = kept.scores, .experts = kept.experts, .rule = spec_.rule};
  if (spec_.balance_alpha > 0) {
    gradient.balance = context.scratch.allocate({batch.batch, spec_.experts});
    launch(context.stream, SequenceLoad{.load = gradient.balance, .scores = kept.scores, .top = spec_.chosen});
    gradient.coefficient = spec_.balance_alpha * context.sample_share / static_cast<float>(batch.length);
  }
  launch(context.stream, gradient);
  launch(context.stream,
         Matmul{.c = router_.gradient, .a = dlogits, .b = kept.y, .transpose_a = true, .write = context.write});
  launch(context.stream, Matmul{.c = dnorm, .a = dlogits, .b = router_.compute, .write = Write::accumulate});
  if (bias_)
    launch(context.stream, ExpertCounts{.counts = bias_->gradient, .offsets = kept.offsets, .write = context.write});
}

Tensor Moe::backward(Context& context, const Batch& batch, const Tensor& dy, Saved& saved) {
  const Kept& kept = static_cast<Kept&>(saved);
  const ArenaScope scope(context.scratch);
  const Tensor dnorm = context.scratch.allocate(kept.y.shape, kept.y.dtype);
  const Tensor dweights = context.scratch.allocate(kept.weights.shape);
  if (shared_) shared_backward(context, kept, dy, dnorm);
  experts_backward(context, kept, dy, dweights, dnorm);
  if (context.tensor.size() > 1) {
    context.tensor.all_reduce(context.stream, dnorm);
    context.tensor.all_reduce(context.stream, dweights);
  }
  router_backward(context, batch, kept, dweights, dnorm);
  norm_.backward(context, kept.norm, dnorm, dy, dy);
  return dy;
}

void Moe::visit(const ParamVisitor& visitor) {
  norm_.visit(visitor);
  visitor(router_);
  if (bias_) visitor(*bias_);
  visitor(gate_up_);
  visitor(down_);
  if (!shared_) return;
  visitor(shared_->gate_up);
  visitor(shared_->down);
}

}  // namespace dstrain
