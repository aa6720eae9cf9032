#include "kernels/gradient_norm.h"

#include "kernels/check.h"

namespace dstrain {

void SquaredNorm::validate() const {
  check_vector(result, DType::f64, 1, "squared_norm: result");
  check_rank(x, 1, "squared_norm: x");
  check_float_vector(x, x.dim(0), "squared_norm: x");
}

Cost SquaredNorm::cost() const { return {0, 0, bytes_of({&result, &x})}; }

std::size_t SquaredNorm::workspace(Device) const {
  return arena_bytes({static_cast<std::size_t>((x.dim(0) + kNormBlock - 1) / kNormBlock) * sizeof(double)});
}

void UpdateScalars::validate() const {
  check_vector(scalars, DType::f32, 4, "update_scalars: scalars");
  check_vector(state, DType::i64, 2, "update_scalars: state");
  check_vector(squared_norm, DType::f64, 1, "update_scalars: squared_norm");
  check_vector(loss, DType::f64, 1, "update_scalars: loss");
  check_vector(bad, DType::f64, 1, "update_scalars: bad");
  check_vector(limits, DType::f64, 2, "update_scalars: limits");
  check(max_norm >= 0 && beta1 >= 0 && beta1 < 1 && beta2 >= 0 && beta2 < 1,
        "update_scalars: max_norm {}, beta1 {}, beta2 {}", max_norm, beta1, beta2);
}

Cost UpdateScalars::cost() const {
  return {0, 0, bytes_of({&scalars, &state, &state, &squared_norm, &loss, &bad, &limits})};
}

}  // namespace dstrain
