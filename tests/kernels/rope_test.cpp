#include "kernels/rope.h"

#include <cmath>

#include "tests/kernels/op_case.h"

using namespace dstrain;
using namespace dstrain::test;

namespace {

// The angle is the f32 product, as documented; sine and cosine lose 1 ulp each, products and their sum 3 u more.
void check_rope(Index rows, Index heads, Index size, DType dtype, Index gap, bool in_place, bool backward) {
  CAPTURE(rows, heads, size, name_of(dtype), gap, in_place, backward);
  for_each_run([&](OpCase& t) {
    const Tensor x = t.normal({rows, heads, size}, dtype, 1, gap);
    const Tensor y = in_place ? x : t.unset({rows, heads, size}, dtype, gap);
    const Tensor positions = t.integers({rows}, DType::i32, 0, 100000);
    const Tensor frequencies =
        t.values({size / 2}, DType::f32, generate(static_cast<std::size_t>(size / 2), [&](std::size_t i) {
                   return std::pow(10000.0, -2.0 * static_cast<double>(i) / static_cast<double>(size));
                 }));
    const Doubles v = to_doubles(x);
    t.launch(Rope{.y = y, .x = x, .positions = positions, .inverse_frequencies = frequencies, .backward = backward});
    if (!t.compare()) return;
    Doubles expected(v.size()), bound(v.size());
    for (Index r = 0; r < rows; ++r) {
      for (Index h = 0; h < heads; ++h) {
        for (Index i = 0; i < size / 2; ++i) {
          const float angle = static_cast<float>(positions.as<std::int32_t>()[r]) * frequencies.as<float>()[i];
          const double c = std::cos(static_cast<double>(angle)),
                       s = std::sin(static_cast<double>(angle)) * (backward ? -1 : 1);
          const auto low = static_cast<std::size_t>((r * heads + h) * size + i),
                     high = low + static_cast<std::size_t>(size / 2);
          expected[low] = v[low] * c - v[high] * s;
          expected[high] = v[high] * c + v[low] * s;
          for (const std::size_t at : {low, high}) {
            bound[at] =
                5 * kUnit * (std::abs(v[low]) + std::abs(v[high])) + 1.01 * unit_of(dtype) * std::abs(expected[at]);
          }
        }
      }
    }
    t.expect("y", y, expected, bound);
  });
}

}  // namespace

TEST_CASE("rope") {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    for (const bool backward : {false, true}) {
      for (const Index size : {2, 6, 14, 64, 130}) check_rope(7, 3, size, dtype, 0, false, backward);
      check_rope(65, 2, 6, dtype, 9, true, backward);
      check_rope(5, 37, 128, dtype, 8, true, backward);  // more than one turn of a block of threads
      check_rope(1, 1, 300, dtype, 0, true, backward);
      check_rope(0, 3, 4, dtype, 0, false, backward);
    }
  }
}

// The gradient of a rotation is its inverse: backward of dy equals the transposed map, by central differences.
TEST_CASE("rope: backward is the gradient of forward") {
  OpCase t(1, true);
  const Tensor positions = t.values({2}, DType::i32, {3, 11}), frequencies = t.values({2}, DType::f32, {1, 0.25});
  const Tensor dy = t.normal({2, 1, 4}, DType::f32), dx = t.unset({2, 1, 4}, DType::f32);
  t.launch(Rope{.y = dx, .x = dy, .positions = positions, .inverse_frequencies = frequencies, .backward = true});
  const auto forward = [](const Doubles& v) {
    Doubles y(v.size());
    for (std::size_t r = 0; r < 2; ++r) {
      for (std::size_t i = 0; i < 2; ++i) {
        const double angle = (r == 0 ? 3.0 : 11.0) * (i == 0 ? 1.0 : 0.25);
        y[4 * r + i] = v[4 * r + i] * std::cos(angle) - v[4 * r + i + 2] * std::sin(angle);
        y[4 * r + i + 2] = v[4 * r + i + 2] * std::cos(angle) + v[4 * r + i] * std::sin(angle);
      }
    }
    return y;
  };
  const Doubles expected = central_differences(forward, Doubles(8, 0.5), to_doubles(dy));
  t.expect("dx", dx, expected, Doubles(8, 5 * kUnit * 8 + kDifference * 8));
}

TEST_CASE("rope: what it rejects") {
  OpCase t(1, true);
  const Tensor x = t.normal({2, 1, 3}, DType::f32);
  check_rejects([&] { t.launch(Rope{.y = x, .x = x}); }, "rope: head size 3 is odd");
}
