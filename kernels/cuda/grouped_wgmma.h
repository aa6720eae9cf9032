#pragma once
// The grouped matmuls on Hopper's tensor cores (wgmma), for bf16 operands whose rows start at multiples of 16 bytes.

#include "kernels/grouped_matmul.h"

namespace dstrain::cuda {

// Whether the calling thread's GPU and the operands' layout allow it.
bool can_run_wgmma(const GroupedMatmul& op);
bool can_run_wgmma(const GroupedGradient& op);
void grouped_matmul_wgmma(Stream& stream, const GroupedMatmul& op);
void grouped_gradient_wgmma(Stream& stream, const GroupedGradient& op);

}  // namespace dstrain::cuda
