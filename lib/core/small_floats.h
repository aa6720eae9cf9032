#pragma once
// Numbers of 16 and 8 bits in files, beside bfloat16 (dtype.h).

#include <bit>
#include <cstdint>
#include <limits>

namespace dstrain {

inline float half_to_float(std::uint16_t h) {
  const std::uint32_t sign = (h & 0x8000u) << 16, exponent = (h >> 10) & 31u, mantissa = h & 0x3ffu;
  if (exponent == 0) {  // zero and subnormals: mantissa * 2^-24
    const float v = static_cast<float>(mantissa) * 0x1p-24f;
    return sign ? -v : v;
  }
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000u | (mantissa << 13));
  return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (mantissa << 13));
}

// Rounds to nearest even; from 65520 on the result is infinite; NaN stays NaN.
inline std::uint16_t float_to_half(float f) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(f), sign = bits >> 16 & 0x8000u, value = bits & 0x7fffffffu;
  if (value > 0x7f800000u) return static_cast<std::uint16_t>(sign | 0x7e00u);
  if (value >= 0x477ff000u) return static_cast<std::uint16_t>(sign | 0x7c00u);
  if (value < 0x38800000u) {
    // Below 2^-14: a multiple of 2^-24, which adding 1/2 rounds to in the last bits of the sum.
    const float sum = std::bit_cast<float>(value) + 0.5f;
    return static_cast<std::uint16_t>(sign | (std::bit_cast<std::uint32_t>(sum) - 0x3f000000u));
  }
  const std::uint32_t rounded = value + 0xfffu + (value >> 13 & 1u);
  return static_cast<std::uint16_t>(sign | ((rounded - 0x38000000u) >> 13));
}

// F8_E4M3 of safetensors: four bits of exponent, three of mantissa, no infinity, NaN where all seven are ones.
inline float e4m3_to_float(std::uint8_t v) {
  const std::uint32_t sign = static_cast<std::uint32_t>(v & 0x80u) << 24, exponent = v >> 3 & 15u, mantissa = v & 7u;
  if (exponent == 15 && mantissa == 7) return std::numeric_limits<float>::quiet_NaN();
  if (exponent == 0) {  // mantissa * 2^-9
    const float f = static_cast<float>(mantissa) * 0x1p-9f;
    return sign ? -f : f;
  }
  return std::bit_cast<float>(sign | ((exponent + 120) << 23) | (mantissa << 20));
}

}  // namespace dstrain
