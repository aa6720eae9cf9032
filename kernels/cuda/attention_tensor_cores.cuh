#pragma once
// Our attention where attention_on_tensor_cores() says so; called by attention_tiled.cu alone.

#include "kernels/cuda/device/attention.cuh"

namespace dstrain::cuda {

void attention_forward_tensor_cores(Stream& stream, const AttentionForward& op);
void attention_backward_tensor_cores(Stream& stream, const AttentionBackward& op, const AttentionArgs& s,
                                     const AttentionGradient& g);

}  // namespace dstrain::cuda
