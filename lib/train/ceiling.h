#pragma once
// Ceilings measured on this machine, in this run: what rates are compared with.

#include "lib/core/stream.h"

namespace dstrain {

// Float32 matmul rate in FLOP/s of the stream's threads: the median of several 1024^3 products of random numbers, a few
// hundredths of a second in all.
double measure_matmul_rate(Stream& stream);
// Bytes copied a second (each byte once) by the stream's threads with memcpy, from one block to another; median.
// REQUIRES: bytes > 0.
double measure_copy_rate(Stream& stream, std::size_t bytes);
// The same with stream_copy: faster where the blocks do not fit in the caches.
double measure_stream_copy_rate(Stream& stream, std::size_t bytes);

}  // namespace dstrain
