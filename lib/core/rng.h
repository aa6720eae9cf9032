#pragma once
// Counter-based random numbers: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC'11).
// key = hash(seed, name), counter = (stream, index): the same bits for the same name and index on every device, rank
// and thread. Includable from .cu files.

#include <array>
#include <cstdint>
#include <string_view>

namespace dstrain {

struct Philox {
  std::uint32_t key[2];

  // `stream` is a sample id or another coarse index, `index` the element's global index divided by four.
  std::array<std::uint32_t, 4> operator()(std::uint64_t stream, std::uint64_t index) const {
    std::uint32_t c[4] = {static_cast<std::uint32_t>(index), static_cast<std::uint32_t>(index >> 32),
                          static_cast<std::uint32_t>(stream), static_cast<std::uint32_t>(stream >> 32)};
    std::uint32_t k0 = key[0], k1 = key[1];
    for (int round = 0; round < 10; ++round) {
      const std::uint64_t p0 = 0xD2511F53ull * c[0], p1 = 0xCD9E8D57ull * c[2];
      const std::uint32_t n0 = static_cast<std::uint32_t>(p1 >> 32) ^ c[1] ^ k0;
      const std::uint32_t n2 = static_cast<std::uint32_t>(p0 >> 32) ^ c[3] ^ k1;
      c[1] = static_cast<std::uint32_t>(p1);
      c[3] = static_cast<std::uint32_t>(p0);
      c[0] = n0;
      c[2] = n2;
      k0 += 0x9E3779B9u;
      k1 += 0xBB67AE85u;
    }
    return {c[0], c[1], c[2], c[3]};
  }
};

// A uniform in (0, 1), never 0 or 1.
inline float uniform(std::uint32_t bits) { return (static_cast<float>(bits >> 9) + 0.5f) * (1.0f / 8388608.0f); }

// The generator of (seed, name), say of one tensor's initial values.
Philox philox(std::uint64_t seed, std::string_view name);

// Standard normals (Box-Muller) for the elements 4*index .. 4*index+3.
std::array<float, 4> normal4(const Philox& generator, std::uint64_t stream, std::uint64_t index);

}  // namespace dstrain
