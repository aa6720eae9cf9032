#pragma once
// What the CUDA matmul does without cuBLASLt.

#include "kernels/matmul.h"

namespace dstrain::cuda {

// c = op(a) op(b) + bias, or c += op(a) op(b), whatever sizes, strides, alignments and dtypes; k may be 0. Sums run
// over k in order. The epilogue is not looked at.
void plain_matmul(Stream& stream, const Matmul& op);

// c = product + bias, or c += product: c (m, n) bf16 strided rows, product (m, n) f32 strided rows.
void finish_product(Stream& stream, const Tensor& c, const Tensor& product, const Tensor& bias, Write write);

// y = x: y (rows, C) f32, x (rows, C) bf16, both strided rows.
void widen_rows(Stream& stream, const Tensor& y, const Tensor& x);

// Adds to sums[0] a hash of the bits of t (rows, C), strided rows, that does not depend on order, and to sums[1] the
// number of its finite elements that are not zero. `sums` is device memory.
void add_checksum(Stream& stream, const Tensor& t, unsigned long long* sums);

}  // namespace dstrain::cuda
