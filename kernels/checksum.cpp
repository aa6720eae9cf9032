#include "kernels/checksum.h"

#include "kernels/check.h"

namespace dstrain {

void Checksum::validate() const {
  check_vector(result, DType::i64, 1, "checksum: result");
  check_rank(x, 1, "checksum: x");
  check(x.dtype == DType::f32 || x.dtype == DType::bf16 || x.dtype == DType::u16 || x.dtype == DType::i32,
        "checksum: x: {}", x.to_string());
  check_vector(x, x.dtype, x.dim(0), "checksum: x");
}

Cost Checksum::cost() const { return {0, 0, bytes_of({&result, &x})}; }

}  // namespace dstrain
