#include "kernels/gradient_norm.h"

#include "kernels/check.h"

namespace dstrain {

void SquaredNorm::validate() const {
  check_vector(result, DType::f64, 1, "squared_norm: result");
  check_rank(x, 1, "squared_norm: x");
  check_vector(x, DType::f32, x.dim(0), "squared_norm: x");
}

Cost SquaredNorm::cost() const { return {0, 0, bytes_of({&result, &x})}; }

std::size_t SquaredNorm::workspace(Device) const {
  return arena_bytes({static_cast<std::size_t>((x.dim(0) + kNormBlock - 1) / kNormBlock) * sizeof(double)});
}

void ClipCoefficient::validate() const {
  check_vector(scalars, DType::f32, 4, "clip_coefficient: scalars");
  check_vector(squared_norm, DType::f64, 1, "clip_coefficient: squared_norm");
  check(max_norm >= 0, "clip_coefficient: max_norm {}", max_norm);
}

Cost ClipCoefficient::cost() const { return {0, 0, bytes_of({&squared_norm}) + sizeof(float)}; }

}  // namespace dstrain
