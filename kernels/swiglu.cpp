#include "kernels/swiglu.h"

#include "kernels/check.h"

namespace dstrain {

void SwiGluForward::validate() const {
  check_rank(y, 2, "swiglu: y");
  check_rows(y, y.dim(0), y.dim(1), "swiglu: y");
  check_rows(gate_up, y.dim(0), 2 * y.dim(1), "swiglu: gate_up");
  check_same_dtype(gate_up, y, "swiglu: gate_up");
}

Cost SwiGluForward::cost() const { return {0, 0, bytes_of({&y, &gate_up})}; }

void SwiGluBackward::validate() const {
  check_rank(dy, 2, "swiglu_backward: dy");
  check_rows(dy, dy.dim(0), dy.dim(1), "swiglu_backward: dy");
  check_rows(gate_up, dy.dim(0), 2 * dy.dim(1), "swiglu_backward: gate_up");
  check_same_dtype(gate_up, dy, "swiglu_backward: gate_up");
  check_rows(dgate_up, dy.dim(0), 2 * dy.dim(1), "swiglu_backward: dgate_up");
  check_same_dtype(dgate_up, dy, "swiglu_backward: dgate_up");
}

Cost SwiGluBackward::cost() const { return {0, 0, bytes_of({&dgate_up, &dy, &gate_up})}; }

}  // namespace dstrain
