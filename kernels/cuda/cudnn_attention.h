#pragma once
// Attention by cuDNN's fused kernels, through its C++ front end. Plans are kept by shape and strides in CudaState; the
// first launch of a shape builds one, which must not happen while a CUDA graph is recorded.

#include "kernels/attention.h"
#include "kernels/cuda/attention_rule.h"

namespace dstrain::cuda {

CudnnFacts cudnn_facts(Stream& stream);

// REQUIRE: why_not_cudnn() has no objection and addresses are multiples of 16 bytes. Throw Error{device} with cuDNN's
// words when it refuses, and with both numbers when it wants more workspace than the op's workspace() says.
void attention_forward_cudnn(Stream& stream, const AttentionForward& op);
// The same bits run after run when the stream's settings say deterministic.
void attention_backward_cudnn(Stream& stream, const AttentionBackward& op);

}  // namespace dstrain::cuda
