#include "kernels/finite.h"

#include "kernels/check.h"

namespace dstrain {

void FiniteCheck::validate() const {
  check_vector(flag, flag.dtype == DType::f64 ? DType::f64 : DType::i32, 1, "finite_check: flag");
  check(most > 0, "finite_check: most {}", most);
  check(x.dtype == DType::f32 || x.dtype == DType::bf16 || x.dtype == DType::f64, "finite_check: x: {}", x.to_string());
  check_last_dense(x, "finite_check: x");
}

Cost FiniteCheck::cost() const { return {0, 0, bytes_of({&x, &flag})}; }

}  // namespace dstrain
