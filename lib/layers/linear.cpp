#include "lib/layers/linear.h"

#include <utility>

#include "kernels/matmul.h"

namespace dstrain {

Linear::Linear(Split split, Param weight, std::optional<Param> bias)
    : split_(split), weight_(std::move(weight)), bias_(std::move(bias)) {
  weight_.one_product = true;
}

void Linear::forward(Context& context, const Tensor& x, const Tensor& y, const Tensor& pre) const {
  check(!pre.defined() || split_ == Split::column, "a row-split linear has whole outputs after the sum only");
  const bool add_bias = bias_ && (split_ != Split::row || context.tensor.rank() == 0);
  launch(context.stream, Matmul{.c = y,
                                .a = x,
                                .b = weight_.compute,
                                .transpose_b = true,
                                .bias = add_bias ? bias_->compute : Tensor{},
                                .epilogue = pre.defined() ? Epilogue::gelu : Epilogue::none,
                                .pre = pre});
  if (split_ == Split::row && context.tensor.size() > 1) context.tensor.all_reduce(context.stream, y);
}

void Linear::backward(Context& context, const Tensor& x, const Tensor& dy, const Tensor& dx, const Tensor& pre,
                      Write dx_write) const {
  check(dx_write == Write::overwrite || split_ == Split::whole,
        "only a whole linear adds to the gradient of its input");
  check(!pre.defined() || split_ == Split::row, "a column-split linear has whole gradients after the sum only");
  launch(context.stream, Matmul{.c = dx,
                                .a = dy,
                                .b = weight_.compute,
                                .write = dx_write,
                                .epilogue = pre.defined() ? Epilogue::gelu_gradient : Epilogue::none,
                                .pre = pre});
  launch(context.stream, Matmul{.c = weight_.gradient, .a = dy, .b = x, .transpose_a = true, .write = context.write});
  if (bias_) launch(context.stream, BiasGradient{.grad = bias_->gradient, .dy = dy, .write = context.write});
  if (split_ == Split::column && context.tensor.size() > 1) context.tensor.all_reduce(context.stream, dx);
}

void Linear::visit(const ParamVisitor& visitor) {
  visitor(weight_);
  if (bias_) visitor(*bias_);
}

}  // namespace dstrain
