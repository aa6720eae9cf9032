#include "kernels/gelu.h"

#include "kernels/check.h"

namespace dstrain {

void GeluForward::validate() const {
  check_rank(x, 2, "gelu: x");
  check_rows(x, x.dim(0), x.dim(1), "gelu: x");
  check_rows(y, x.dim(0), x.dim(1), "gelu: y");
  check_same_dtype(y, x, "gelu: y");
}

Cost GeluForward::cost() const { return {0, 0, bytes_of({&y, &x})}; }

void GeluBackward::validate() const {
  check_rank(x, 2, "gelu_backward: x");
  check_rows(x, x.dim(0), x.dim(1), "gelu_backward: x");
  check_rows(dy, x.dim(0), x.dim(1), "gelu_backward: dy");
  check_same_dtype(dy, x, "gelu_backward: dy");
  check_rows(dx, x.dim(0), x.dim(1), "gelu_backward: dx");
  check_same_dtype(dx, x, "gelu_backward: dx");
}

Cost GeluBackward::cost() const { return {0, 0, bytes_of({&dx, &dy, &x})}; }

}  // namespace dstrain
