#pragma once
// Norm, feed-forward network. SwiGLU (Shazeer 2020): down(silu(gate x) * up x); GELU (Hendrycks & Gimpel 2016):
// down(gelu(up x)). The inner width is cut over the tensor group.

#include "lib/layers/linear.h"
#include "lib/layers/norm.h"

namespace dstrain {

enum class Activation : unsigned char { swiglu, gelu_tanh, gelu_erf };

class Mlp final : public Layer {
 public:
  // up: column, rows [gate | up] for SwiGLU; down: row. `layer` names the dropout stream.
  Mlp(Index layer, Activation activation, float residual_dropout, Norm norm, Linear up, Linear down);

  Hidden forward(Context& context, const Batch& batch, const Hidden& x, std::unique_ptr<Saved>& saved) override;
  Tensor backward(Context& context, const Batch& batch, const Tensor& dy, Saved& saved) override;
  void visit(const ParamVisitor& visitor) override;

 private:
  struct Kept;

  Index layer_;
  Activation activation_;
  float residual_dropout_;
  Norm norm_;
  Linear up_;
  Linear down_;
};

}  // namespace dstrain
