#pragma once
// The norm in front of a sub-layer, fused with the residual sum: sum = residual + branch, y = norm(sum).
// RMSNorm (Zhang & Sennrich 2019) has a weight only; LayerNorm (Ba et al. 2016) a weight and a bias.

#include <optional>

#include "lib/layers/layer.h"

namespace dstrain {

class Norm {
 public:
  struct Kept {
    Tensor sum;   // (rows, C), the new residual
    Tensor mean;  // (rows), LayerNorm only
    Tensor rstd;  // (rows)
  };

  // With a bias it is LayerNorm, without RMSNorm.
  Norm(float eps, Param weight, std::optional<Param> bias = {});

  // Writes y (rows, C). In Mode::train the sum is new memory from context.saved, else x.residual itself.
  Kept forward(Context& context, const Hidden& x, const Tensor& y) const;
  // dx = gradient through the norm of dy, plus dresidual when defined; dx may be dy or dresidual.
  void backward(Context& context, const Kept& kept, const Tensor& dy, const Tensor& dresidual, const Tensor& dx) const;
  void visit(const ParamVisitor& visitor);

 private:
  float eps_;
  Param weight_;
  std::optional<Param> bias_;
};

}  // namespace dstrain
