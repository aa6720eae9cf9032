#pragma once
// Attention by our own tiled kernels: any dtype, head size up to 256, lengths, strides, masks and dropout. The meaning
// of the op on CUDA where cuDNN cannot run, and its check. Sums in f32 FMA; no atomics.

#include "kernels/attention.h"

namespace dstrain::cuda {

void attention_forward_tiled(Stream& stream, const AttentionForward& op);
// Takes (B, H, Tq) f32 of workspace: dout . o of each query.
void attention_backward_tiled(Stream& stream, const AttentionBackward& op);

}  // namespace dstrain::cuda
