#include "kernels/rope.h"

#include "kernels/check.h"

namespace dstrain {

void Rope::validate() const {
  check_rank(x, 3, "rope: x");
  check_float(x, "rope: x");
  check_last_dense(x, "rope: x");
  check_shape(y, x.shape, "rope: y");
  check_same_dtype(y, x, "rope: y");
  check_last_dense(y, "rope: y");
  check(x.dim(2) % 2 == 0, "rope: head size {} is odd", x.dim(2));
  check_vector(positions, DType::i32, x.dim(0), "rope: positions");
  check_vector(inverse_frequencies, DType::f32, x.dim(2) / 2, "rope: inverse_frequencies");
}

Cost Rope::cost() const { return {0, 0, bytes_of({&y, &x, &positions, &inverse_frequencies})}; }

}  // namespace dstrain
