#pragma once
// What the CUDA matmul does without cuBLASLt.

#include "kernels/matmul.h"

namespace dstrain::cuda {

// c = op(a) op(b) + bias, or c += op(a) op(b), whatever sizes, strides, alignments and dtypes; k may be 0. Sums run
// over k in order. The epilogue is not looked at.
void plain_matmul(Stream& stream, const Matmul& op);

// c = product + bias, or c += product: c (m, n) strided rows, product (m, n) f32 strided rows, or the sum of
// product's equal parts, as many as fit, one below the other or side by side.
void finish_product(Stream& stream, const Tensor& c, const Tensor& product, const Tensor& bias, Write write);

// y = x: flat, y f32, x bf16.
void widen(Stream& stream, const Tensor& y, const Tensor& x);

// y = kTerms times x, one below the other or side by side; of an f32 x terms that add up to it, exactly but for what is
// under 2^-133, the largest first (what is not finite stands in it alone). y bf16, strided rows both.
void stack_terms(Stream& stream, const Tensor& y, const Tensor& x, bool below);

// Adds to sums[0] a hash of the bits of t (rows, C), strided rows, that does not depend on order, and to sums[1] the
// number of its finite elements that are not zero. `sums` is device memory.
void add_checksum(Stream& stream, const Tensor& t, unsigned long long* sums);

}  // namespace dstrain::cuda
