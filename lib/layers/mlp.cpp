#include "lib/layers/mlp.h"

#include <utility>

#include "kernels/gelu.h"
#include "kernels/swiglu.h"
#include "lib/layers/residual_dropout.h"

namespace dstrain {

struct Mlp::Kept final : Saved {
  Norm::Kept norm;
  Tensor y;       // (rows, C), normalised input
  Tensor inner;   // (rows, 2F) or (rows, F), before the activation
  Tensor active;  // (rows, F), after it
};

Mlp::Mlp(Index layer, Activation activation, float residual_dropout, Norm norm, Linear up, Linear down)
    : layer_(layer),
      activation_(activation),
      residual_dropout_(residual_dropout),
      norm_(std::move(norm)),
      up_(std::move(up)),
      down_(std::move(down)) {}

Hidden Mlp::forward(Context& context, const Batch& batch, const Hidden& x, std::unique_ptr<Saved>& saved) {
  const bool train = context.mode == Mode::train;
  const ArenaScope scope(context.scratch);
  Arena& memory = train ? context.saved : context.scratch;
  const Index rows = batch.rows();

  auto kept = std::make_unique<Kept>();
  kept->y = memory.allocate(x.residual.shape, x.residual.dtype);
  kept->norm = norm_.forward(context, x, kept->y);
  kept->inner = memory.allocate({rows, up_.out_features()}, x.residual.dtype);
  kept->active = memory.allocate({rows, down_.in_features()}, x.residual.dtype);
  if (activation_ == Activation::gelu_tanh) {
    up_.forward(context, kept->y, kept->active, kept->inner);
  } else {
    up_.forward(context, kept->y, kept->inner);
    if (activation_ == Activation::swiglu)
      launch(context.stream, SwiGluForward{.y = kept->active, .gate_up = kept->inner});
    else
      launch(context.stream, GeluForward{.y = kept->active, .x = kept->inner, .tanh = false});
  }
  down_.forward(context, kept->active, context.branch);
  dstrain::residual_dropout(context, batch, "mlp", layer_, residual_dropout_, context.branch, context.branch);
  const Hidden y{kept->norm.sum, context.branch};
  if (train) saved = std::move(kept);
  return y;
}

Tensor Mlp::backward(Context& context, const Batch& batch, const Tensor& dy, Saved& saved) {
  const Kept& kept = static_cast<Kept&>(saved);
  const ArenaScope scope(context.scratch);
  const Tensor dbranch = residual_dropout_gradient(context, batch, "mlp", layer_, residual_dropout_, dy);
  const Tensor dactive = context.scratch.allocate(kept.active.shape, kept.active.dtype);
  Tensor dinner = kept.inner;  // in place: the pre-activation is not needed again
  if (activation_ == Activation::gelu_tanh) {
    down_.backward(context, kept.active, dbranch, dactive, kept.inner);
    dinner = dactive;
  } else {
    down_.backward(context, kept.active, dbranch, dactive);
    if (activation_ == Activation::swiglu)
      launch(context.stream, SwiGluBackward{.dgate_up = dinner, .dy = dactive, .gate_up = kept.inner});
    else
      launch(context.stream, GeluBackward{.dx = dinner, .dy = dactive, .x = kept.inner, .tanh = false});
  }
  const Tensor dnorm = context.scratch.allocate(kept.y.shape, kept.y.dtype);
  up_.backward(context, kept.y, dinner, dnorm);
  norm_.backward(context, kept.norm, dnorm, dy, dy);
  return dy;
}

void Mlp::visit(const ParamVisitor& visitor) {
  norm_.visit(visitor);
  up_.visit(visitor);
  down_.visit(visitor);
}

}  // namespace dstrain
