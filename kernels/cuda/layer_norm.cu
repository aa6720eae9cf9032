#include "kernels/layer_norm.h"

#include "kernels/cuda/device/norm.cuh"

namespace dstrain {

void run(Cuda, Stream& stream, const LayerNormForward& op) { cuda::norm_forward<true>(stream, op); }
void run(Cuda, Stream& stream, const LayerNormBackward& op) { cuda::norm_backward<true>(stream, op); }

}  // namespace dstrain
