#pragma once
// Ceilings measured on this machine, in this run: what rates are compared with.

#include "lib/core/stream.h"

namespace dstrain {

// Rate in FLOP/s of n^3 matmuls of random numbers on the stream's device (its threads, on the CPU); median of several.
// Takes 3 n^2 elements of the device's memory for the while.
double measure_matmul_rate(Stream& stream, DType dtype = DType::f32, Index n = 1024);
// Bytes copied a second (each byte once) by the stream's threads with memcpy, from one block to another; median.
// REQUIRES: bytes > 0.
double measure_copy_rate(Stream& stream, std::size_t bytes);
// The same with stream_copy: faster where the blocks do not fit in the caches.
double measure_stream_copy_rate(Stream& stream, std::size_t bytes);

// CUDA: bytes read and written a second by copies of `bytes` within the stream's GPU; median.
double measure_device_copy_rate(Stream& stream, std::size_t bytes);

}  // namespace dstrain
