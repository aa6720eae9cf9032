#include "lib/layers/norm.h"

#include <utility>

#include "kernels/layer_norm.h"
#include "kernels/rms_norm.h"

namespace dstrain {

Norm::Norm(float eps, Param weight, std::optional<Param> bias)
    : eps_(eps), weight_(std::move(weight)), bias_(std::move(bias)) {}

Norm::Kept Norm::forward(Context& context, const Hidden& x, const Tensor& y) const {
  const bool train = context.mode == Mode::train;
  Arena& memory = train ? context.saved : context.scratch;
  const Index rows = x.residual.dim(0);
  Kept kept;
  kept.sum = x.branch.defined() && train ? memory.allocate(x.residual.shape, x.residual.dtype) : x.residual;
  kept.rstd = memory.allocate({rows});
  const Tensor sum = x.branch.defined() ? kept.sum : Tensor{};
  if (bias_) {
    kept.mean = memory.allocate({rows});
    launch(context.stream, LayerNormForward{.y = y,
                                            .mean = kept.mean,
                                            .rstd = kept.rstd,
                                            .sum = sum,
                                            .x = x.residual,
                                            .branch = x.branch,
                                            .weight = weight_.compute,
                                            .bias = bias_->compute,
                                            .eps = eps_});
  } else {
    launch(context.stream, RmsNormForward{.y = y,
                                          .rstd = kept.rstd,
                                          .sum = sum,
                                          .x = x.residual,
                                          .branch = x.branch,
                                          .weight = weight_.compute,
                                          .eps = eps_});
  }
  return kept;
}

void Norm::backward(Context& context, const Kept& kept, const Tensor& dy, const Tensor& dresidual,
                    const Tensor& dx) const {
  if (bias_) {
    launch(context.stream, LayerNormBackward{.dx = dx,
                                             .dweight = weight_.gradient,
                                             .dbias = bias_->gradient,
                                             .dy = dy,
                                             .x = kept.sum,
                                             .mean = kept.mean,
                                             .rstd = kept.rstd,
                                             .weight = weight_.compute,
                                             .dresidual = dresidual,
                                             .write = context.write});
  } else {
    launch(context.stream, RmsNormBackward{.dx = dx,
                                           .dweight = weight_.gradient,
                                           .dy = dy,
                                           .x = kept.sum,
                                           .rstd = kept.rstd,
                                           .weight = weight_.compute,
                                           .dresidual = dresidual,
                                           .write = context.write});
  }
}

void Norm::visit(const ParamVisitor& visitor) {
  visitor(weight_);
  if (bias_) visitor(*bias_);
}

}  // namespace dstrain
