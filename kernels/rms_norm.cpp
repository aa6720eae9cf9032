#include "kernels/rms_norm.h"

#include "kernels/check.h"
#include "kernels/column_sums.h"
#include "kernels/norm_blocks.h"

namespace dstrain {

void RmsNormForward::validate() const {
  check_rank(x, 2, "rms_norm: x");
  const Index rows = x.dim(0), columns = x.dim(1);
  check_rows(x, rows, columns, "rms_norm: x");
  check_rows(y, rows, columns, "rms_norm: y");
  check_same_dtype(y, x, "rms_norm: y");
  check_vector(rstd, DType::f32, rows, "rms_norm: rstd");
  check_float_vector(weight, columns, "rms_norm: weight");
  check(branch.defined() == sum.defined(), "rms_norm: branch and sum come together; branch {}, sum {}",
        branch.defined(), sum.defined());
  if (branch.defined()) {
    check_rows(branch, rows, columns, "rms_norm: branch");
    check_same_dtype(branch, x, "rms_norm: branch");
    check_rows(sum, rows, columns, "rms_norm: sum");
    check_same_dtype(sum, x, "rms_norm: sum");
  }
  check(eps > 0, "rms_norm: eps {}", eps);
}

Cost RmsNormForward::cost() const { return {0, 0, bytes_of({&y, &rstd, &sum, &x, &branch, &weight})}; }

std::size_t RmsNormForward::workspace(Device target) const {
  if (target == Device::cuda) return 0;
  return weight.dtype == DType::f32 ? 0 : arena_bytes({static_cast<std::size_t>(weight.numel()) * sizeof(float)});
}

void RmsNormBackward::validate() const {
  check_rank(x, 2, "rms_norm_backward: x");
  const Index rows = x.dim(0), columns = x.dim(1);
  check_rows(x, rows, columns, "rms_norm_backward: x");
  check_rows(dx, rows, columns, "rms_norm_backward: dx");
  check_same_dtype(dx, x, "rms_norm_backward: dx");
  check_rows(dy, rows, columns, "rms_norm_backward: dy");
  check_same_dtype(dy, x, "rms_norm_backward: dy");
  check_vector(rstd, DType::f32, rows, "rms_norm_backward: rstd");
  check_float_vector(weight, columns, "rms_norm_backward: weight");
  check_vector(dweight, DType::f32, columns, "rms_norm_backward: dweight");
  if (dresidual.defined()) {
    check_rows(dresidual, rows, columns, "rms_norm_backward: dresidual");
    check_same_dtype(dresidual, x, "rms_norm_backward: dresidual");
  }
}

Cost RmsNormBackward::cost() const { return {0, 0, bytes_of({&dx, &dweight, &dy, &x, &rstd, &weight, &dresidual})}; }

std::size_t RmsNormBackward::workspace(Device target) const {
  if (target == Device::cuda) return cuda::norm_partial_bytes(x, 1);
  const std::size_t copy = weight.dtype == DType::f32 ? 0 : static_cast<std::size_t>(weight.numel()) * sizeof(float);
  return arena_bytes({copy}) + column_sums_bytes(x.dim(0), x.dim(1), 1);
}

}  // namespace dstrain
