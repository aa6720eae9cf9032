#pragma once
// kernels/split_master.h on the device, the same bits.

#include <cuda_bf16.h>

#include <cstdint>

namespace dstrain::cuda {

__device__ inline void split_master(float w, __nv_bfloat16& hi, std::uint16_t& low) {
  const std::uint32_t bits = __float_as_uint(w);
  hi = __ushort_as_bfloat16(static_cast<unsigned short>((bits + 0x8000u) >> 16));
  low = static_cast<std::uint16_t>(bits);
}

__device__ inline float join_master(__nv_bfloat16 hi, std::uint16_t low) {
  const auto signed_low = static_cast<std::uint32_t>(static_cast<std::int32_t>(static_cast<std::int16_t>(low)));
  return __uint_as_float((static_cast<std::uint32_t>(__bfloat16_as_ushort(hi)) << 16) + signed_low);
}

}  // namespace dstrain::cuda
