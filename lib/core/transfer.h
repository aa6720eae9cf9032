#pragma once
// Copies between the host's memory and a tensor's, whatever its device.

#include "lib/core/stream.h"
#include "lib/core/tensor.h"

namespace dstrain {

// Contiguous tensors only. The first two return when the copy is done and are not ordered with any stream: for set-up.
// On Device::dry they do nothing.
void upload_now(const Tensor& to, const void* from);
void download_now(void* to, const Tensor& from);

// In stream order. On a CUDA stream the host memory must be page-locked for the copy to be asynchronous, and must not
// change before it is done; on a CPU stream the copy is done on return.
void upload(Stream& stream, const Tensor& to, const void* from);
void download(Stream& stream, void* to, const Tensor& from);

}  // namespace dstrain
