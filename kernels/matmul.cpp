#include "kernels/matmul.h"

#include "kernels/check.h"
#include "kernels/column_sums.h"
#include "kernels/cuda/matmul_parts.h"

namespace dstrain {

void Matmul::validate() const {
  check_rank(c, 2, "matmul: c");
  check_rank(a, 2, "matmul: a");
  check_rank(b, 2, "matmul: b");
  const Index k_of_b = b.dim(transpose_b ? 1 : 0);
  check(k() == k_of_b, "matmul: a {}{} has inner size {}, b {}{} has {}", a.shape.to_string(),
        transpose_a ? " transposed" : "", k(), b.shape.to_string(), transpose_b ? " transposed" : "", k_of_b);
  check_rows(c, m(), n(), "matmul: c");
  check_rows(a, transpose_a ? k() : m(), transpose_a ? m() : k(), "matmul: a");
  check_rows(b, transpose_b ? n() : k(), transpose_b ? k() : n(), "matmul: b");
  if (bias.defined()) {
    check(write == Write::overwrite, "matmul: a bias of {} elements with accumulate", bias.numel());
    check_float_vector(bias, n(), "matmul: bias");
  }
  if (epilogue == Epilogue::none) return;
  check(write == Write::overwrite, "matmul: a GELU with accumulate");
  check(epilogue == Epilogue::gelu || !bias.defined(), "matmul: a bias of {} elements with a gradient", bias.numel());
  check_rows(pre, m(), n(), "matmul: pre");
  check_same_dtype(pre, c, "matmul: pre");
}

Cost Matmul::cost() const {
  const double flops = 2.0 * static_cast<double>(m()) * static_cast<double>(n()) * static_cast<double>(k());
  const double again = write == Write::accumulate ? bytes_of({&c}) : 0.0;
  return {flops, flops, bytes_of({&c, &a, &b, &bias, &pre}) + again};
}

std::size_t Matmul::workspace(Device target) const {
  if (target == Device::cuda) {
    const cuda::MatmulParts parts = cuda::matmul_parts(*this);
    const auto operand = [&](bool of_a) {
      return cuda::stacks(parts, of_a) ? cuda::stacked(*this, of_a, parts).bytes() : 0;
    };
    const Shape product = cuda::product_shape(*this, parts);
    return arena_bytes({cuda::kMatmulWorkspace, operand(true), operand(false),
                        parts.widen_bias ? static_cast<std::size_t>(n()) * sizeof(float) : 0,
                        parts.apart ? static_cast<std::size_t>(product.numel()) * sizeof(float) : 0});
  }
  const auto f32_copy = [](const Tensor& t) {
    return t.defined() && t.dtype == DType::bf16 ? static_cast<std::size_t>(t.numel()) * sizeof(float) : 0;
  };
  return arena_bytes({f32_copy(a), f32_copy(b), f32_copy(c), f32_copy(bias)});
}

void BiasGradient::validate() const {
  check_rank(dy, 2, "bias_gradient: dy");
  check_rows(dy, dy.dim(0), dy.dim(1), "bias_gradient: dy");
  check_vector(grad, DType::f32, dy.dim(1), "bias_gradient: grad");
}

Cost BiasGradient::cost() const {
  return {0, 0, bytes_of({&dy, &grad}) + (write == Write::accumulate ? bytes_of({&grad}) : 0.0)};
}

std::size_t BiasGradient::workspace(Device) const { return column_sums_bytes(dy.dim(0), dy.dim(1), 1); }

}  // namespace dstrain
