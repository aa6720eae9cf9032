#pragma once
// lib/core/rng.h on the device: the same bits.

#include <cstdint>

#include "lib/core/rng.h"

namespace dstrain::cuda {

struct Bits {
  std::uint32_t v[4];
};

__device__ inline Bits philox(const Philox& generator, std::uint64_t stream, std::uint64_t index) {
  std::uint32_t c0 = static_cast<std::uint32_t>(index), c1 = static_cast<std::uint32_t>(index >> 32);
  std::uint32_t c2 = static_cast<std::uint32_t>(stream), c3 = static_cast<std::uint32_t>(stream >> 32);
  std::uint32_t k0 = generator.key[0], k1 = generator.key[1];
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const std::uint32_t high0 = __umulhi(0xD2511F53u, c0), low0 = 0xD2511F53u * c0;
    const std::uint32_t high1 = __umulhi(0xCD9E8D57u, c2), low1 = 0xCD9E8D57u * c2;
    c0 = high1 ^ c1 ^ k0;
    c2 = high0 ^ c3 ^ k1;
    c1 = low1;
    c3 = low0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

// A uniform in (0, 1); every step is exact, so it is the host's.
__device__ inline float uniform(std::uint32_t bits) {
  return __fmul_rn(__fadd_rn(static_cast<float>(bits >> 9), 0.5f), 1.0f / 8388608.0f);
}

}  // namespace dstrain::cuda
