#include "kernels/elementwise.h"

#include <cmath>

#include "tests/kernels/op_case.h"

using namespace dstrain;
using namespace dstrain::test;

TEST_CASE("add rounds once") {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    for (const Index n : {0, 1, 3, 7, 65, 129, 70000}) {
      for_each_run([&](OpCase& t) {
        const Tensor a = t.normal({n}, dtype), b = t.normal({n}, dtype), y = n == 65 ? a : t.unset({n}, dtype);
        const Doubles va = to_doubles(a), vb = to_doubles(b);
        t.launch(Add{.y = y, .a = a, .b = b});
        if (!t.compare()) return;
        const Doubles expected = generate(va.size(), [&](std::size_t i) { return va[i] + vb[i]; });
        t.expect("y", y, expected,
                 generate(va.size(), [&](std::size_t i) { return 1.01 * unit_of(dtype) * std::abs(expected[i]); }));
      });
    }
  }
}

TEST_CASE("cast rounds to nearest even, fill fills") {
  for (const Index n : {0, 1, 7, 129, 70000}) {
    for_each_run([&](OpCase& t) {
      const Tensor x = t.normal({n, 1}, DType::f32), half = t.unset({n, 1}, DType::bf16),
                   back = t.unset({n, 1}, DType::f32);
      t.launch(Cast{.y = half, .x = x});
      t.launch(Cast{.y = back, .x = half});
      for (const DType dtype : {DType::f32, DType::bf16, DType::f64}) {
        const Tensor y = t.unset({n}, dtype);
        t.launch(Fill{.y = y, .value = -1.5f});
        if (t.compare()) t.expect_equal("fill", y, Doubles(static_cast<std::size_t>(n), -1.5));
      }
      if (!t.compare()) return;
      const Doubles v = to_doubles(x);
      t.expect("half", half, v, generate(v.size(), [&](std::size_t i) { return 0x1p-8 * std::abs(v[i]); }));
      t.expect_equal("back", back, to_doubles(half));
    });
  }
  OpCase t(1, true);
  const Tensor x = t.values({5}, DType::f32, {1 + 0x1p-8, 1 + 3 * 0x1p-8, 1 + 0x1p-8 + 0x1p-20, -INFINITY, 3.4e38});
  const Tensor y = t.unset({5}, DType::bf16);
  t.launch(Cast{.y = y, .x = x});
  t.expect_equal("ties", y, {1, 1 + 0x1p-6, 1 + 0x1p-7, -INFINITY, INFINITY});
}

TEST_CASE("copy moves any strides and dtypes") {
  for (const DType dtype : {DType::f64, DType::f32, DType::bf16, DType::i32, DType::u8}) {
    for_each_run([&](OpCase& t) {
      const Tensor x = t.integers({3, 5, 7}, dtype, 0, 100), y = t.unset({3, 7, 5}, dtype, 4),
                   whole = t.unset({3, 5, 7}, dtype);
      Tensor turned = x;
      std::swap(turned.shape[1], turned.shape[2]);
      std::swap(turned.strides[1], turned.strides[2]);
      t.launch(Copy{.y = y, .x = turned});
      t.launch(Copy{.y = whole.slice(1, 1, 4), .x = x.slice(1, 2, 5)});
      t.launch(Copy{.y = whole.slice(0, 0, 0), .x = x.slice(0, 0, 0)});
      if (!t.compare()) return;
      const Doubles v = to_doubles(x), w = to_doubles(whole);
      t.expect_equal("turned", y,
                     generate(v.size(), [&](std::size_t i) { return v[i / 35 * 35 + i % 5 * 7 + i / 5 % 7]; }));
      for (std::size_t i = 7; i < 28; ++i) CHECK(w[i] == v[i + 7]);
    });
  }
}

TEST_CASE("elementwise: what they reject") {
  OpCase t(1, true);
  const Tensor a = t.normal({2, 3}, DType::f32), b = t.normal({3, 2}, DType::f32),
               gaps = t.normal({2, 3}, DType::f32, 1, 2);
  const Tensor ints = t.integers({2, 3}, DType::i32, 0, 3);
  check_rejects([&] { t.launch(Add{.y = a, .a = a, .b = b}); }, "add: b has shape (3, 2), expected (2, 3)");
  check_rejects([&] { t.launch(Add{.y = a, .a = gaps, .b = a}); }, "add: a has gaps");
  check_rejects([&] { t.launch(Cast{.y = a, .x = ints}); }, "cast: x is i32");
  check_rejects([&] { t.launch(Fill{.y = ints}); }, "fill: y is i32");
  check_rejects([&] { t.launch(Copy{.y = a, .x = ints}); }, "copy: x is i32, expected f32");
}
