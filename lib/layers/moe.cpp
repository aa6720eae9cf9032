#include "lib/layers/moe.h"

#include <array>
#include <utility>

#include "kernels/elementwise.h"
#include "kernels/experts.h"
#include "kernels/grouped_matmul.h"
#include "kernels/matmul.h"
#include "kernels/swiglu.h"

namespace dstrain {

struct Moe::Kept final : Saved {
  Norm::Kept norm;
  Tensor y;                                 // (rows, C), normalised input
  Tensor scores;                            // (rows, E) f32
  Tensor experts, weights;                  // (rows, K) i32, f32
  Tensor offsets;                           // (E + 1) i32
  Tensor place;                             // (rows, K) i32
  Tensor choice_at, row_at;                 // (rows * K) i32
  Tensor gate_up;                           // (rows * K, 2F), in the experts' order
  std::vector<ExpertExchange::Part> parts;  // with expert parallelism, instead of place to gate_up
  Tensor shared_gate_up, shared_active;     // (rows, 2S), (rows, S)
  Work work() const { return {y, weights, offsets, place, choice_at, row_at, gate_up}; }
};

namespace {

// Ops whose cost does not count: what a plan runs for its memory, and what is computed a second time.
class Uncounted {
 public:
  Uncounted(Stream& stream, bool on) : stream_(stream), ledger_(stream.ledger()) {
    if (on) stream.set_ledger(nullptr);
  }
  ~Uncounted() { stream_.set_ledger(ledger_); }
  Uncounted(const Uncounted&) = delete;
  Uncounted& operator=(const Uncounted&) = delete;

 private:
  Stream& stream_;
  Ledger* ledger_;
};

}  // namespace

Moe::Moe(MoeSpec spec, Norm norm, Param router, Param counts, Param gate_up, Param down, std::optional<Shared> shared)
    : spec_(spec),
      norm_(std::move(norm)),
      router_(std::move(router)),
      counts_(std::move(counts)),
      gate_up_(std::move(gate_up)),
      down_(std::move(down)),
      shared_(std::move(shared)) {
  gate_up_.one_product = down_.one_product = true;
  if (shared_) shared_->gate_up.one_product = shared_->down.one_product = true;
}

void Moe::route(Context& context, Arena& memory, Kept& kept) const {
  const Index rows = kept.y.dim(0), k = spec_.chosen;
  kept.scores = memory.allocate({rows, spec_.experts});
  kept.experts = memory.allocate({rows, k}, DType::i32);
  kept.weights = memory.allocate({rows, k});
  kept.offsets = memory.allocate({spec_.experts + 1}, DType::i32);
  launch(context.stream, Matmul{.c = kept.scores, .a = kept.y, .b = router_.compute, .transpose_b = true});
  launch(context.stream, Route{.scores = kept.scores,
                               .experts = kept.experts,
                               .weights = kept.weights,
                               .logits = kept.scores,
                               .bias = counts_.rule == UpdateRule::balance ? counts_.compute : Tensor{},
                               .rule = spec_.rule});
  if (context.experts) return;
  kept.place = memory.allocate({rows, k}, DType::i32);
  kept.choice_at = memory.allocate({rows * k}, DType::i32);
  kept.row_at = memory.allocate({rows * k}, DType::i32);
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

void Moe::gate_up_forward(Context& context, const Work& work, const Tensor& activated) const {
  launch(context.stream, GroupedMatmul{.c = work.gate_up,
                                       .a = work.x,
                                       .b = gate_up_.compute,
                                       .offsets = work.offsets,
                                       .rows_of = work.row_at,
                                       .transpose_b = true,
                                       .activated = activated});
}

void Moe::experts_forward(Context& context, const Work& work, const Tensor& y, const Tensor& start) const {
  const Index places = work.gate_up.dim(0);
  const Tensor active = context.scratch.allocate({places, down_.shape[1]}, y.dtype);
  gate_up_forward(context, work, active);
  const Tensor outputs = context.scratch.allocate({places, y.dim(1)}, y.dtype);
  launch(context.stream,
         GroupedMatmul{.c = outputs, .a = active, .b = down_.compute, .offsets = work.offsets, .transpose_b = true});
  launch(context.stream, ExpertSum{.y = y, .x = outputs, .place = work.place, .weights = work.weights, .start = start});
}

Moe::Work Moe::received(Context& context, const ExpertExchange::Part& part, const Tensor& x, const Tensor& experts,
                        const Tensor& weights) const {
  Arena& memory = context.scratch;
  const Index here = context.experts->own_experts();
  Work work{.x = x,
            .weights = weights,
            .offsets = memory.allocate({here + 1}, DType::i32),
            .place = memory.allocate(experts.shape, DType::i32),
            .choice_at = memory.allocate({part.choices}, DType::i32),
            .row_at = memory.allocate({part.choices}, DType::i32),
            .gate_up = memory.allocate({part.choices, gate_up_.shape[0] / here}, x.dtype)};
  launch(context.stream, ExpertOrder{.offsets = work.offsets,
                                     .place = work.place,
                                     .choice_at = work.choice_at,
                                     .row_at = work.row_at,
                                     .experts = experts,
                                     .first = context.experts->first_expert()});
  return work;
}

void Moe::exchange_forward(Context& context, Arena& memory, Kept& kept) const {
  ExpertExchange& exchange = *context.experts;
  exchange.start(context.stream, memory, context.scratch, kept.experts, kept.offsets);
  if (shared_) shared_forward(context, memory, kept);
  kept.parts = exchange.parts();
  for (ExpertExchange::Part& part : kept.parts) {
    const ArenaScope scope(context.scratch);
    const Uncounted uncounted(context.stream, part.bound);
    ExpertExchange::Part here = part;
    if (here.received.empty()) exchange.count(context.stream, context.scratch, kept.experts, here);
    const auto arrived =
        exchange.send(context.stream, context.scratch, here, std::array{kept.y, kept.experts, kept.weights});
    exchange.wait(context.stream);
    const Work work = received(context, here, arrived[0], arrived[1], arrived[2]);
    const Tensor sums = context.scratch.allocate(arrived[0].shape, kept.y.dtype);
    experts_forward(context, work, sums, {});
    const auto answers = exchange.answer(context.stream, context.scratch, here, std::array{sums});
    const Tensor y = context.branch.slice(0, here.begin, here.end);
    launch(context.stream, ExpertSum{.y = y, .x = answers[0], .place = here.place, .start = shared_ ? y : Tensor{}});
  }
}

Hidden Moe::forward(Context& context, const Batch&, const Hidden& x, std::unique_ptr<Saved>& saved) {
  const bool train = context.mode == Mode::train;
  const ArenaScope scope(context.scratch);
  Arena& memory = train ? context.saved : context.scratch;
  const DType dtype = x.residual.dtype;

  auto kept = std::make_unique<Kept>();
  kept->y = memory.allocate(x.residual.shape, dtype);
  kept->norm = norm_.forward(context, x, kept->y);
  route(context, memory, *kept);
  if (context.experts) {
    exchange_forward(context, memory, *kept);
  } else {
    kept->gate_up = memory.allocate({kept->row_at.dim(0), gate_up_.shape[0] / spec_.experts}, dtype);
    if (shared_) shared_forward(context, memory, *kept);
    experts_forward(context, kept->work(), context.branch, shared_ ? context.branch : Tensor{});
  }
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

void Moe::experts_backward(Context& context, const Work& work, const Tensor& dy, const Tensor& dweights,
                           const Tensor& dx, const Tensor& start, Write write) const {
  const ArenaScope scope(context.scratch);
  const Index places = work.row_at.dim(0);
  const Tensor d = context.scratch.allocate({places, down_.shape[1]}, dy.dtype);
  launch(context.stream,
         GroupedMatmul{.c = d, .a = dy, .b = down_.compute, .offsets = work.offsets, .rows_of = work.row_at});
  launch(context.stream, ExpertActivationGradient{.dgate_up = work.gate_up,
                                                  .weighted = d,
                                                  .dweights = dweights,
                                                  .d = d,
                                                  .gate_up = work.gate_up,
                                                  .weights = work.weights,
                                                  .choice_at = work.choice_at});
  launch(context.stream, GroupedGradient{.c = down_.gradient,
                                         .a = dy,
                                         .b = d,
                                         .offsets = work.offsets,
                                         .a_rows_of = work.row_at,
                                         .rows = places,
                                         .write = write});
  launch(context.stream, GroupedGradient{.c = gate_up_.gradient,
                                         .a = work.gate_up,
                                         .b = work.x,
                                         .offsets = work.offsets,
                                         .b_rows_of = work.row_at,
                                         .rows = places,
                                         .write = write});
  const Tensor outputs = context.scratch.allocate({places, dy.dim(1)}, dy.dtype);
  launch(context.stream,
         GroupedMatmul{.c = outputs, .a = work.gate_up, .b = gate_up_.compute, .offsets = work.offsets});
  launch(context.stream, ExpertSum{.y = dx, .x = outputs, .place = work.place, .start = start});
}

void Moe::exchange_backward(Context& context, const Kept& kept, const Tensor& dy, const Tensor& dweights,
                            const Tensor& dnorm) const {
  ExpertExchange& exchange = *context.experts;
  Write write = context.write;
  for (const ExpertExchange::Part& part : kept.parts) {
    const ArenaScope scope(context.scratch);
    const Uncounted uncounted(context.stream, part.bound);
    ExpertExchange::Part here = part;
    if (here.received.empty())
      exchange.count(context.stream, context.scratch, kept.experts, here);
    else
      exchange.ready(context.stream);
    const auto arrived =
        exchange.send(context.stream, context.scratch, here, std::array{kept.y, kept.experts, kept.weights, dy});
    if (shared_ && part.begin == 0 && !part.bound) shared_backward(context, kept, dy, dnorm);
    exchange.wait(context.stream);
    const Work work = received(context, here, arrived[0], arrived[1], arrived[2]);
    {
      const Uncounted again(context.stream, context.stream.device() == Device::dry);
      gate_up_forward(context, work, {});
    }
    const std::array gradients{context.scratch.allocate(arrived[3].shape, dy.dtype),
                               context.scratch.allocate(arrived[2].shape)};
    launch(context.stream, Fill{.y = gradients[1]});
    experts_backward(context, work, arrived[3], gradients[1], gradients[0], {}, write);
    write = Write::accumulate;
    const auto answers = exchange.answer(context.stream, context.scratch, here, gradients);
    const Tensor dx = dnorm.slice(0, here.begin, here.end);
    launch(context.stream, ExpertSum{.y = dx, .x = answers[0], .place = here.place, .start = shared_ ? dx : Tensor{}});
    launch(context.stream,
           ExpertSum{.y = dweights.slice(0, here.begin, here.end), .x = answers[1], .place = here.place});
  }
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
    gradient.coefficient = spec_.balance_alpha * context.sample_share / static_cast<float>(batch.length) *
                           (spec_.mtp ? context.mtp_share : 1.0f);
  }
  launch(context.stream, gradient);
  launch(context.stream,
         Matmul{.c = router_.gradient, .a = dlogits, .b = kept.y, .transpose_a = true, .write = context.write});
  launch(context.stream, Matmul{.c = dnorm, .a = dlogits, .b = router_.compute, .write = Write::accumulate});
  launch(context.stream, ExpertCounts{.counts = counts_.gradient, .offsets = kept.offsets, .write = context.write});
}

Tensor Moe::backward(Context& context, const Batch& batch, const Tensor& dy, Saved& saved) {
  const Kept& kept = static_cast<Kept&>(saved);
  const ArenaScope scope(context.scratch);
  const Tensor dnorm = context.scratch.allocate(kept.y.shape, kept.y.dtype);
  const Tensor dweights = context.scratch.allocate(kept.weights.shape);
  if (context.experts) {
    exchange_backward(context, kept, dy, dweights, dnorm);
  } else {
    if (shared_) shared_backward(context, kept, dy, dnorm);
    experts_backward(context, kept.work(), dy, dweights, dnorm, shared_ ? dnorm : Tensor{}, context.write);
  }
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
  visitor(counts_);
  visitor(gate_up_);
  visitor(down_);
  if (!shared_) return;
  visitor(shared_->gate_up);
  visitor(shared_->down);
}

}  // namespace dstrain
