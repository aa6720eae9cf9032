#pragma once
// What the validate() and cost() of the ops share. `what` names op and tensor: "matmul: bias".

#include <initializer_list>

#include "kernels/op.h"

namespace dstrain {

void check_float(const Tensor& t, const char* what);                            // f32 or bf16
void check_flat(const Tensor& t, const char* what);                             // no gaps
void check_last_dense(const Tensor& t, const char* what);                       // last stride 1
void check_rows(const Tensor& t, Index rows, Index columns, const char* what);  // f32 or bf16, last stride 1
void check_vector(const Tensor& t, DType dtype, Index n, const char* what);     // flat (n)
void check_float_vector(const Tensor& t, Index n, const char* what);            // flat (n), f32 or bf16
void check_same_dtype(const Tensor& t, const Tensor& like, const char* what);
void check_rank(const Tensor& t, int rank, const char* what);

// Bytes of the elements of all of them together.
double bytes_of(std::initializer_list<const Tensor*> tensors);
// The bytes that an arena needs for pieces of these sizes.
std::size_t arena_bytes(std::initializer_list<std::size_t> pieces);

}  // namespace dstrain
