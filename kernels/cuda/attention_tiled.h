#pragma once
// Attention by our own tiled kernels: any dtype, head size up to 256, lengths, strides, masks and dropout. The meaning
// of the op on CUDA where cuDNN cannot run, and its check. Sums are f32, in a fixed order; no atomics.

#include "kernels/attention.h"

namespace dstrain::cuda {

// Products on tensor cores: probabilities and score gradients are rounded to bf16 before they are multiplied. Elsewhere
// they stay f32 and products are FMAs.
inline bool attention_on_tensor_cores(const Tensor& q, const Tensor& v) {
  const Index size = q.dim(3), value_size = v.dim(3);
  return q.dtype == DType::bf16 && size % 16 == 0 && value_size % 16 == 0 && size <= 128 && value_size <= 128;
}

void attention_forward_tiled(Stream& stream, const AttentionForward& op);
// Takes (B, H, Tq) f32 of workspace: dout . o of each query.
void attention_backward_tiled(Stream& stream, const AttentionBackward& op);

}  // namespace dstrain::cuda
