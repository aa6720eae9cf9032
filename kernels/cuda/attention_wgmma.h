#pragma once
// The gradient of attention on Hopper's warpgroup products: bf16, heads of 64 or 128. dq is added up in f32 by
// whichever block comes, so that its last bits differ from run to run; dk and dv do not.

#include "kernels/attention.h"

namespace dstrain::cuda {

// Whether the build has the kernel for the card that runs.
bool has_wgmma_attention();

// Takes wgmma_workspace() bytes. REQUIRES: why_not_wgmma() gives null (kernels/cuda/attention_rule.h) and addresses are
// aligned to 16 bytes.
void attention_backward_wgmma(Stream& stream, const AttentionBackward& op);

}  // namespace dstrain::cuda
