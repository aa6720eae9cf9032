#pragma once
// Philox (lib/core/rng.h), eight counters at a time.

#include <immintrin.h>

#include "lib/core/rng.h"
#include "lib/core/shape.h"

namespace dstrain::cpu {

// bits[4 g + i] = generator(stream, first + g)[i] for 0 <= g < groups.
inline void philox_block(const Philox& generator, std::uint64_t stream, std::uint64_t first, Index groups,
                         std::uint32_t* bits) {
  constexpr Index kLanes = 8;
  const auto all = [](std::uint64_t word) { return _mm256_set1_epi32(static_cast<int>(word & 0xffffffffu)); };
  const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const __m256i m0 = all(0xD2511F53u), m1 = all(0xCD9E8D57u);
  // The high and low words of the products of eight pairs.
  const auto multiply = [](__m256i a, __m256i m, __m256i& high, __m256i& low) {
    const __m256i even = _mm256_mul_epu32(a, m), odd = _mm256_mul_epu32(_mm256_srli_epi64(a, 32), m);
    low = _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0b10101010);
    high = _mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0b10101010);
  };
  Index g = 0;
  // Eight counters whose low words do not run over.
  for (; g + kLanes <= groups && ((first + static_cast<std::uint64_t>(g)) & 0xffffffffu) <= 0xfffffff8u; g += kLanes) {
    const std::uint64_t index = first + static_cast<std::uint64_t>(g);
    __m256i c0 = _mm256_add_epi32(all(index), lanes), c1 = all(index >> 32), c2 = all(stream), c3 = all(stream >> 32);
    std::uint32_t k0 = generator.key[0], k1 = generator.key[1];
    for (int round = 0; round < 10; ++round) {
      __m256i high0, low0, high1, low1;
      multiply(c0, m0, high0, low0);
      multiply(c2, m1, high1, low1);
      c0 = _mm256_xor_si256(_mm256_xor_si256(high1, c1), all(k0));
      c1 = low1;
      c2 = _mm256_xor_si256(_mm256_xor_si256(high0, c3), all(k1));
      c3 = low0;
      k0 += 0x9E3779B9u;
      k1 += 0xBB67AE85u;
    }
    // From words of eight counters to counters of four words.
    const __m256i a = _mm256_unpacklo_epi32(c0, c1), b = _mm256_unpackhi_epi32(c0, c1);
    const __m256i c = _mm256_unpacklo_epi32(c2, c3), d = _mm256_unpackhi_epi32(c2, c3);
    const __m256i of04 = _mm256_unpacklo_epi64(a, c), of15 = _mm256_unpackhi_epi64(a, c);
    const __m256i of26 = _mm256_unpacklo_epi64(b, d), of37 = _mm256_unpackhi_epi64(b, d);
    auto* const out = reinterpret_cast<__m256i*>(bits + 4 * g);
    _mm256_storeu_si256(out, _mm256_permute2x128_si256(of04, of15, 0x20));
    _mm256_storeu_si256(out + 1, _mm256_permute2x128_si256(of26, of37, 0x20));
    _mm256_storeu_si256(out + 2, _mm256_permute2x128_si256(of04, of15, 0x31));
    _mm256_storeu_si256(out + 3, _mm256_permute2x128_si256(of26, of37, 0x31));
  }
  for (; g < groups; ++g) {
    const auto four = generator(stream, first + static_cast<std::uint64_t>(g));
    for (std::size_t i = 0; i < 4; ++i) bits[4 * g + static_cast<Index>(i)] = four[i];
  }
}

}  // namespace dstrain::cpu
