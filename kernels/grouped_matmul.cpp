#include "kernels/grouped_matmul.h"

#include "kernels/check.h"

namespace dstrain {

namespace {

void check_operand(const Tensor& t, const Tensor& rows_of, Index rows, Index columns, const char* what) {
  check_rank(t, 2, what);
  check_rows(t, rows_of.defined() ? t.dim(0) : rows, columns, what);
  if (rows_of.defined()) check_vector(rows_of, DType::i32, rows, what);
}

void check_offsets(const Tensor& offsets) {
  check_rank(offsets, 1, "grouped_matmul: offsets");
  check_vector(offsets, DType::i32, offsets.dim(0), "grouped_matmul: offsets");
  check(offsets.dim(0) >= 2 && offsets.dim(0) <= 1025, "grouped_matmul: {} offsets", offsets.dim(0));
}

// On a CPU: rows of the operand in f32, in order of the groups, unless they lie so already.
std::size_t gathered_bytes(const Tensor& t, const Tensor& rows_of, Index rows) {
  const bool there = t.dtype == DType::f32 && !rows_of.defined();
  return there ? 0 : static_cast<std::size_t>(rows * t.dim(1)) * sizeof(float);
}

}  // namespace

void GroupedMatmul::validate() const {
  check_rank(c, 2, "grouped_matmul: c");
  check_rank(a, 2, "grouped_matmul: a");
  check_offsets(offsets);
  const Index rows = c.dim(0), n = c.dim(1), k = a.dim(1);
  check_rows(c, rows, n, "grouped_matmul: c");
  check_operand(a, rows_of, rows, k, "grouped_matmul: a");
  check_same_dtype(a, c, "grouped_matmul: a");
  check_rows(b, groups() * (transpose_b ? n : k), transpose_b ? k : n, "grouped_matmul: b");
  check_same_dtype(b, c, "grouped_matmul: b");
  if (!activated.defined()) return;
  check(transpose_b, "grouped_matmul: an activation of products with a matrix that is not transposed");
  check(n % 2 == 0, "grouped_matmul: {} columns are not as many of gate as of up", n);
  check_rows(activated, rows, n / 2, "grouped_matmul: activated");
  check_same_dtype(activated, c, "grouped_matmul: activated");
}

Cost GroupedMatmul::cost() const {
  const double flops =
      2.0 * static_cast<double>(c.dim(0)) * static_cast<double>(c.dim(1)) * static_cast<double>(a.dim(1));
  return {flops, flops, bytes_of({&c, &a, &b, &offsets, &rows_of, &activated})};
}

std::size_t GroupedMatmul::workspace(Device target) const {
  if (target == Device::cuda) return 0;
  const auto f32_copy = [](const Tensor& t) {
    return t.dtype == DType::bf16 ? static_cast<std::size_t>(t.numel()) * sizeof(float) : 0;
  };
  return arena_bytes({gathered_bytes(a, rows_of, c.dim(0)), f32_copy(b), f32_copy(c)});
}

void GroupedGradient::validate() const {
  check_rank(c, 2, "grouped_gradient: c");
  check_rank(a, 2, "grouped_gradient: a");
  check_rank(b, 2, "grouped_gradient: b");
  check_offsets(offsets);
  check_rows(c, groups() * a.dim(1), b.dim(1), "grouped_gradient: c");
  if (c.dtype != DType::f32) check_same_dtype(c, a, "grouped_gradient: c");
  check_operand(a, a_rows_of, rows, a.dim(1), "grouped_gradient: a");
  check_operand(b, b_rows_of, rows, b.dim(1), "grouped_gradient: b");
  check_same_dtype(b, a, "grouped_gradient: b");
}

Cost GroupedGradient::cost() const {
  const double flops = 2.0 * static_cast<double>(rows) * static_cast<double>(a.dim(1)) * static_cast<double>(b.dim(1));
  return {
      flops, flops,
      bytes_of({&c, &a, &b, &offsets, &a_rows_of, &b_rows_of}) + (write == Write::accumulate ? bytes_of({&c}) : 0.0)};
}

std::size_t GroupedGradient::workspace(Device target) const {
  if (target == Device::cuda) return 0;
  return arena_bytes({c.dtype == DType::f32 ? 0 : static_cast<std::size_t>(c.numel()) * sizeof(float),
                      gathered_bytes(a, a_rows_of, rows), gathered_bytes(b, b_rows_of, rows)});
}

}  // namespace dstrain
