// Every number of 16 and 8 bits, against arithmetic in double precision.

#include "lib/core/small_floats.h"

#include <cmath>

#include "tests/support/catch.h"

using namespace dstrain;

namespace {

// A number of `exponent` and `mantissa` bits by the definition.
double value_of(unsigned bits, int exponent_bits, int mantissa_bits, int bias) {
  const unsigned mantissa = bits & ((1u << mantissa_bits) - 1);
  const int exponent = static_cast<int>(bits >> mantissa_bits & ((1u << exponent_bits) - 1));
  const double sign = bits >> (exponent_bits + mantissa_bits) & 1 ? -1.0 : 1.0, unit = std::ldexp(1.0, -mantissa_bits);
  return exponent == 0 ? sign * mantissa * unit * std::ldexp(1.0, 1 - bias)
                       : sign * (1 + mantissa * unit) * std::ldexp(1.0, exponent - bias);
}

}  // namespace

TEST_CASE("every E4M3 byte has the format's value", "[small_floats]") {
  int wrong = 0;
  for (unsigned b = 0; b < 256; ++b) {
    const float f = e4m3_to_float(static_cast<std::uint8_t>(b));
    if ((b & 0x7f) == 0x7f)
      wrong += !std::isnan(f);
    else
      wrong += f != value_of(b, 4, 3, 7) || std::signbit(f) != (b >= 128);
  }
  CHECK(wrong == 0);
  CHECK(e4m3_to_float(0x7e) == 448.0f);
}

TEST_CASE("every half reads as the format's value and is written back", "[small_floats]") {
  int wrong = 0;
  for (unsigned h = 0; h < 65536; ++h) {
    const auto half = static_cast<std::uint16_t>(h);
    const float f = half_to_float(half);
    if ((h & 0x7fff) > 0x7c00) {
      wrong += !std::isnan(f) || (float_to_half(f) & 0x7c00) != 0x7c00;
      continue;
    }
    wrong += (h & 0x7fff) == 0x7c00 ? !std::isinf(f) : f != value_of(h, 5, 10, 15);
    wrong += float_to_half(f) != half;
  }
  CHECK(wrong == 0);
}

TEST_CASE("halves are rounded to nearest, ties to even", "[small_floats]") {
  int wrong = 0;
  for (unsigned h = 0; h < 0x7c00; ++h) {
    // Between a half and the next: the middle goes to the even one, its neighbours to the nearer.
    const double low = value_of(h, 5, 10, 15), high = h == 0x7bff ? 65536.0 : value_of(h + 1, 5, 10, 15);
    const float middle = static_cast<float>((low + high) / 2);
    wrong += float_to_half(middle) != (h % 2 == 0 ? h : h + 1);
    wrong += float_to_half(std::nextafter(middle, 0.0f)) != h;
    wrong += float_to_half(std::nextafter(middle, 1e9f)) != h + 1;
    wrong += float_to_half(-middle) != (0x8000u | (h % 2 == 0 ? h : h + 1));
  }
  CHECK(wrong == 0);
  CHECK(float_to_half(1e30f) == 0x7c00);
  CHECK(float_to_half(1e-30f) == 0);
}
