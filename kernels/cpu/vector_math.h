#pragma once
// Elementary functions without branches or calls, so that loops over them become vectors. Errors are in units in the
// last place against the true value, and are tested.

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

namespace dstrain::cpu {

// exp(x) within 2 ulp. 0 below -87.33 (results under the smallest normal), infinity above 88.722839; NaN stays NaN.
[[gnu::always_inline]] inline float fast_exp(float x) {
  constexpr float kLow = -87.33f, kHigh = 88.722839f;
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, held in the low bits
  const float clamped = x < kLow ? kLow : (x > kHigh ? kHigh : x);
  const float shifted = __builtin_fmaf(clamped, 1.44269504088896341f, kRound);
  const float n = shifted - kRound;
  const float r = __builtin_fmaf(n, 2.12194440e-4f, __builtin_fmaf(n, -0.693359375f, clamped));  // x - n ln 2
  float p = 1.9875691500e-4f;                                                                    // Cephes, expf
  p = __builtin_fmaf(p, r, 1.3981999507e-3f);
  p = __builtin_fmaf(p, r, 8.3334519073e-3f);
  p = __builtin_fmaf(p, r, 4.1665795894e-2f);
  p = __builtin_fmaf(p, r, 1.6666665459e-1f);
  p = __builtin_fmaf(p, r, 5.0000001201e-1f);
  p = __builtin_fmaf(p, r * r, r) + 1.0f;
  // times 2^n, by adding n to the exponent
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(p) + (std::bit_cast<std::uint32_t>(shifted) << 23);
  float y = std::bit_cast<float>(bits);
  y = x < kLow ? 0.0f : y;
  y = x > kHigh ? std::numeric_limits<float>::infinity() : y;
  return x != x ? x : y;
}

[[gnu::always_inline]] inline float sigmoid(float x) { return 1.0f / (1.0f + fast_exp(-x)); }

// erf(x) within 4 ulp.
[[gnu::always_inline]] inline float fast_erf(float x) {
  const float t = std::fabs(x), s = x * x;
  float big = __builtin_fmaf(-1.72853470e-5f, t, 3.83197126e-4f);
  big = __builtin_fmaf(big, s, __builtin_fmaf(-3.88396438e-3f, t, 2.42546219e-2f));
  big = __builtin_fmaf(big, t, -1.06777877e-1f);
  big = __builtin_fmaf(big, t, -6.34846687e-1f);
  big = __builtin_fmaf(big, t, -1.28717512e-1f);
  big = __builtin_fmaf(big, t, -t);
  big = 1.0f - fast_exp(t > 4.0f ? -100.0f : big);
  big = std::copysign(big, x);
  float small = -5.96761703e-4f;
  small = __builtin_fmaf(small, s, 4.99119423e-3f);
  small = __builtin_fmaf(small, s, -2.67681349e-2f);
  small = __builtin_fmaf(small, s, 1.12819925e-1f);
  small = __builtin_fmaf(small, s, -3.76125336e-1f);
  small = __builtin_fmaf(small, s, 1.28379166e-1f);
  small = __builtin_fmaf(small, x, x);
  return t > 0.927734375f ? big : small;
}

// Sine and cosine within 1 ulp of f32 for |x| up to 2^24: reduced by pi/2 and evaluated in double.
[[gnu::always_inline]] inline void fast_sincos(float x, float& sine, float& cosine) {
  constexpr double kRound = 6755399441055744.0;  // 1.5 * 2^52
  const double shifted = static_cast<double>(x) * 0.63661977236758134308 + kRound;
  const double n = shifted - kRound;
  double r = __builtin_fma(n, -1.57079632679489655800, static_cast<double>(x));
  r = __builtin_fma(n, -6.12323399573676603587e-17, r);
  const double z = r * r;
  const double s =
      r + r * z * (-1.0 / 6 + z * (1.0 / 120 + z * (-1.0 / 5040 + z * (1.0 / 362880 + z * (-1.0 / 39916800)))));
  const double c =
      1.0 + z * (-0.5 + z * (1.0 / 24 + z * (-1.0 / 720 + z * (1.0 / 40320 + z * (-1.0 / 3628800 + z / 479001600)))));
  const std::uint64_t quadrant = std::bit_cast<std::uint64_t>(shifted) & 3;
  const double a = (quadrant & 1) != 0 ? c : s;
  const double b = (quadrant & 1) != 0 ? s : c;
  sine = static_cast<float>((quadrant & 2) != 0 ? -a : a);
  cosine = static_cast<float>(((quadrant + 1) & 2) != 0 ? -b : b);
}

}  // namespace dstrain::cpu
