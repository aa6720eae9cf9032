#pragma once
// The sum of a reduction, in rank order.

#include <cstddef>
#include <span>

#include "lib/comm/process_group.h"

namespace dstrain {

// out[i] = ((parts[0][i] + parts[1][i]) + ...) in float32 (f64: float64; integers: exact, modulo 2^bits), rounded once;
// or the maximum, NaN if any is NaN. `out` may be one of the parts. dtypes: f32, bf16, f64, i32, i64.
void reduce_in_order(ThreadPool* pool, std::byte* out, std::span<const std::byte* const> parts, Index count,
                     DType dtype, ReduceOp op);

}  // namespace dstrain
