#pragma once
// y = x W^T + b with W cut over the tensor group (Shoeybi et al., "Megatron-LM", 2019): by columns of the output, each
// rank making its own outputs, or by rows of the input, the partial outputs summed.

#include <optional>

#include "lib/layers/layer.h"

namespace dstrain {

enum class Split : unsigned char {
  column,  // W is (out / tensor, in): x is whole, y is this rank's part
  row,     // W is (out, in / tensor): x is this rank's part, y is summed over the group; the bias is added once
  whole,   // W is whole on every rank, and so are x, y and their gradients: nothing is sent
};

class Linear {
 public:
  Linear(Split split, Param weight, std::optional<Param> bias = {});

  Index in_features() const { return weight_.shape[1]; }   // this rank's
  Index out_features() const { return weight_.shape[0]; }  // this rank's
  const Param& weight() const { return weight_; }

  // x (rows, in), y (rows, out); y is overwritten. With `pre` (rows, out; column only) the outputs go there and y is
  // their gelu_tanh.
  void forward(Context& context, const Tensor& x, const Tensor& y, const Tensor& pre = {}) const;
  // dx (rows, in) is overwritten with the gradient summed over the group, or has it added (`dx_write`; whole only); x
  // is what forward read. With `pre` (rows, in; row only) x is gelu_tanh(pre) and dx the gradient of pre.
  void backward(Context& context, const Tensor& x, const Tensor& dy, const Tensor& dx, const Tensor& pre = {},
                Write dx_write = Write::overwrite) const;
  void visit(const ParamVisitor& visitor);

 private:
  Split split_;
  Param weight_;
  std::optional<Param> bias_;
};

}  // namespace dstrain
