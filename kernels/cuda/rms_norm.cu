#include "kernels/rms_norm.h"

#include "kernels/cuda/device/norm.cuh"

namespace dstrain {

void run(Cuda, Stream& stream, const RmsNormForward& op) { cuda::norm_forward<false>(stream, op); }
void run(Cuda, Stream& stream, const RmsNormBackward& op) { cuda::norm_backward<false>(stream, op); }

}  // namespace dstrain
