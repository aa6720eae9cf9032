#include "kernels/layer_norm.h"

#include "kernels/check.h"
#include "kernels/column_sums.h"
#include "kernels/norm_blocks.h"

namespace dstrain {

void LayerNormForward::validate() const {
  check_rank(x, 2, "layer_norm: x");
  const Index rows = x.dim(0), columns = x.dim(1);
  check_rows(x, rows, columns, "layer_norm: x");
  check_rows(y, rows, columns, "layer_norm: y");
  check_same_dtype(y, x, "layer_norm: y");
  check_vector(mean, DType::f32, rows, "layer_norm: mean");
  check_vector(rstd, DType::f32, rows, "layer_norm: rstd");
  check_float_vector(weight, columns, "layer_norm: weight");
  check_float_vector(bias, columns, "layer_norm: bias");
  check(branch.defined() == sum.defined(), "layer_norm: branch and sum come together; branch {}, sum {}",
        branch.defined(), sum.defined());
  if (branch.defined()) {
    check_rows(branch, rows, columns, "layer_norm: branch");
    check_same_dtype(branch, x, "layer_norm: branch");
    check_rows(sum, rows, columns, "layer_norm: sum");
    check_same_dtype(sum, x, "layer_norm: sum");
  }
  check(eps > 0, "layer_norm: eps {}", eps);
}

Cost LayerNormForward::cost() const { return {0, 0, bytes_of({&y, &mean, &rstd, &sum, &x, &branch, &weight, &bias})}; }

std::size_t LayerNormForward::workspace(Device target) const {
  if (target == Device::cuda) return 0;
  const auto copy = [](const Tensor& t) {
    return t.dtype == DType::f32 ? 0 : static_cast<std::size_t>(t.numel()) * sizeof(float);
  };
  return arena_bytes({copy(weight), copy(bias)});
}

void LayerNormBackward::validate() const {
  check_rank(x, 2, "layer_norm_backward: x");
  const Index rows = x.dim(0), columns = x.dim(1);
  check_rows(x, rows, columns, "layer_norm_backward: x");
  check_rows(dx, rows, columns, "layer_norm_backward: dx");
  check_same_dtype(dx, x, "layer_norm_backward: dx");
  check_rows(dy, rows, columns, "layer_norm_backward: dy");
  check_same_dtype(dy, x, "layer_norm_backward: dy");
  check_vector(mean, DType::f32, rows, "layer_norm_backward: mean");
  check_vector(rstd, DType::f32, rows, "layer_norm_backward: rstd");
  check_float_vector(weight, columns, "layer_norm_backward: weight");
  check_vector(dweight, DType::f32, columns, "layer_norm_backward: dweight");
  check_vector(dbias, DType::f32, columns, "layer_norm_backward: dbias");
  if (dresidual.defined()) {
    check_rows(dresidual, rows, columns, "layer_norm_backward: dresidual");
    check_same_dtype(dresidual, x, "layer_norm_backward: dresidual");
  }
}

Cost LayerNormBackward::cost() const {
  return {0, 0, bytes_of({&dx, &dweight, &dbias, &dy, &x, &mean, &rstd, &weight, &dresidual})};
}

std::size_t LayerNormBackward::workspace(Device target) const {
  if (target == Device::cuda) return cuda::norm_partial_bytes(x, 2);
  const std::size_t copy = weight.dtype == DType::f32 ? 0 : static_cast<std::size_t>(weight.numel()) * sizeof(float);
  return arena_bytes({copy}) + column_sums_bytes(x.dim(0), x.dim(1), 2);
}

}  // namespace dstrain
