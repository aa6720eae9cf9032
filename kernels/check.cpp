#include "kernels/check.h"

namespace dstrain {

void check_float(const Tensor& t, const char* what) {
  check(t.dtype == DType::f32 || t.dtype == DType::bf16, "{} is {}, expected f32 or bf16", what, name_of(t.dtype));
}

void check_flat(const Tensor& t, const char* what) {
  check(t.contiguous(), "{} has gaps: {}, strides {}", what, t.to_string(), t.strides.to_string());
}

void check_last_dense(const Tensor& t, const char* what) {
  check(t.rank() > 0 && (t.stride(-1) == 1 || t.dim(-1) <= 1), "{}: the last stride of {}, strides {}, is not 1", what,
        t.to_string(), t.strides.to_string());
}

void check_rows(const Tensor& t, Index rows, Index columns, const char* what) {
  check_shape(t, {rows, columns}, what);
  check_float(t, what);
  check_last_dense(t, what);
}

void check_vector(const Tensor& t, DType dtype, Index n, const char* what) {
  check_shape(t, {n}, what);
  check_dtype(t, dtype, what);
  check_flat(t, what);
}

void check_float_vector(const Tensor& t, Index n, const char* what) {
  check_shape(t, {n}, what);
  check_float(t, what);
  check_flat(t, what);
}

void check_same_dtype(const Tensor& t, const Tensor& like, const char* what) { check_dtype(t, like.dtype, what); }

void check_rank(const Tensor& t, int rank, const char* what) {
  check(t.rank() == rank, "{} is {}, expected {} dimensions", what, t.to_string(), rank);
}

double bytes_of(std::initializer_list<const Tensor*> tensors) {
  double sum = 0;
  for (const Tensor* t : tensors) sum += t->defined() ? static_cast<double>(t->bytes()) : 0.0;
  return sum;
}

std::size_t arena_bytes(std::initializer_list<std::size_t> pieces) {
  std::size_t sum = 0;
  for (std::size_t n : pieces) sum += (n + Arena::kAlign - 1) / Arena::kAlign * Arena::kAlign;
  return sum;
}

}  // namespace dstrain
