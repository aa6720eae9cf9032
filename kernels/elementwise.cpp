#include "kernels/elementwise.h"

#include "kernels/check.h"

namespace dstrain {

void Add::validate() const {
  check_float(y, "add: y");
  check_flat(y, "add: y");
  check_shape(a, y.shape, "add: a");
  check_same_dtype(a, y, "add: a");
  check_flat(a, "add: a");
  check_shape(b, y.shape, "add: b");
  check_same_dtype(b, y, "add: b");
  check_flat(b, "add: b");
}

Cost Add::cost() const { return {0, 0, bytes_of({&y, &a, &b})}; }

void Cast::validate() const {
  check_float(y, "cast: y");
  check_flat(y, "cast: y");
  check_float(x, "cast: x");
  check_shape(x, y.shape, "cast: x");
  check_flat(x, "cast: x");
}

Cost Cast::cost() const { return {0, 0, bytes_of({&y, &x})}; }

void Fill::validate() const {
  check(y.dtype == DType::f32 || y.dtype == DType::bf16 || y.dtype == DType::f64, "fill: y is {}", name_of(y.dtype));
  check_flat(y, "fill: y");
}

Cost Fill::cost() const { return {0, 0, bytes_of({&y})}; }

void Copy::validate() const {
  check_shape(x, y.shape, "copy: x");
  check_same_dtype(x, y, "copy: x");
}

Cost Copy::cost() const { return {0, 0, bytes_of({&y, &x})}; }

}  // namespace dstrain
