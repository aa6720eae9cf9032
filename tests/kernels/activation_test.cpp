// SwiGLU and GELU: per element, so bounds are a few u times the terms of the formula.
#include <cmath>

#include "kernels/gelu.h"
#include "kernels/swiglu.h"
#include "tests/kernels/op_case.h"

using namespace dstrain;
using namespace dstrain::test;

namespace {

double silu(double g) { return g / (1 + std::exp(-g)); }
double gelu(double x, bool tanh) {
  return tanh ? x / 2 * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)))
              : x / 2 * (1 + std::erf(x / std::sqrt(2.0)));
}

void check_swiglu(Index rows, Index columns, DType dtype, Index gap) {
  CAPTURE(rows, columns, name_of(dtype), gap);
  for_each_run([&](OpCase& t) {
    const Tensor gate_up = t.normal({rows, 2 * columns}, dtype, 3, gap), dy = t.normal({rows, columns}, dtype, 1, gap);
    const Tensor y = t.unset({rows, columns}, dtype, gap);
    const Tensor dgate_up = gap > 0 ? gate_up : t.unset({rows, 2 * columns}, dtype);
    const Doubles v = to_doubles(gate_up), d = to_doubles(dy);
    t.launch(SwiGluForward{.y = y, .gate_up = gate_up});
    t.launch(SwiGluBackward{.dgate_up = dgate_up, .dy = dy, .gate_up = gate_up});
    if (!t.compare()) return;
    const auto f = static_cast<std::size_t>(columns);
    const auto gate = [&](std::size_t i) { return v[i / f * 2 * f + i % f]; };
    const auto up = [&](std::size_t i) { return v[i / f * 2 * f + f + i % f]; };
    const Doubles expected = generate(d.size(), [&](std::size_t i) { return silu(gate(i)) * up(i); });
    // sigmoid: exp within 2 ulp, a sum, a division; two products; below exp's range silu is 0 within 1e-30
    t.expect("y", y, expected, generate(d.size(), [&](std::size_t i) {
               return (10 * kUnit + 1.01 * unit_of(dtype)) * std::abs(expected[i]) + 1e-30;
             }));
    Doubles gradient(v.size()), bound(v.size());
    for (std::size_t i = 0; i < d.size(); ++i) {
      const Doubles at =
          central_differences([](const Doubles& gu) { return Doubles{silu(gu[0]) * gu[1]}; }, {gate(i), up(i)}, {d[i]});
      const std::size_t g = i / f * 2 * f + i % f;
      gradient[g] = at[0];
      gradient[g + f] = at[1];
      bound[g] = 20 * kUnit * std::abs(d[i] * up(i)) * (1 + std::abs(gate(i))) +
                 1.01 * unit_of(dtype) * std::abs(at[0]) + kDifference * std::abs(d[i]) * (1 + std::abs(up(i)));
      bound[g + f] = (12 * kUnit + 1.01 * unit_of(dtype)) * std::abs(at[1]) +
                     kDifference * std::abs(d[i]) * (1 + std::abs(gate(i)));
    }
    t.expect("dgate_up", dgate_up, gradient, bound);
  });
}

void check_gelu(Index rows, Index columns, DType dtype, Index gap, bool tanh) {
  CAPTURE(rows, columns, name_of(dtype), gap, tanh);
  for_each_run([&](OpCase& t) {
    const Tensor x = t.normal({rows, columns}, dtype, 2, gap), y = t.unset({rows, columns}, dtype, gap);
    const Tensor dy = t.normal({rows, columns}, dtype, 1, gap), dx = gap > 0 ? dy : t.unset({rows, columns}, dtype);
    const Doubles v = to_doubles(x), d = to_doubles(dy);
    t.launch(GeluForward{.y = y, .x = x, .tanh = tanh});
    t.launch(GeluBackward{.dx = dx, .dy = dy, .x = x, .tanh = tanh});
    if (!t.compare()) return;
    // The gate lies in (0, 1) and is known within (12 + 8 |x|^3) u absolutely (u of tanh's argument times its size).
    const auto loss = [&](std::size_t i) { return (16 + 8 * std::pow(std::abs(v[i]), 3)) * kUnit; };
    const Doubles expected = generate(v.size(), [&](std::size_t i) { return gelu(v[i], tanh); });
    t.expect("y", y, expected, generate(v.size(), [&](std::size_t i) {
               return loss(i) * std::min(1.0, std::abs(v[i])) * 2 + 1.01 * unit_of(dtype) * std::abs(expected[i]);
             }));
    Doubles gradient(v.size()), bound(v.size());
    for (std::size_t i = 0; i < v.size(); ++i) {
      gradient[i] = central_differences([&](const Doubles& z) { return Doubles{gelu(z[0], tanh)}; }, {v[i]}, {d[i]})[0];
      bound[i] = std::abs(d[i]) * (2 * loss(i) + kDifference) + 1.01 * unit_of(dtype) * std::abs(gradient[i]);
    }
    t.expect("dx", dx, gradient, bound);
  });
}

}  // namespace

TEST_CASE("swiglu and its gradient") {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    for (const Index columns : {1, 3, 7, 65, 127, 129}) check_swiglu(7, columns, dtype, 0);
    for (const Index columns : {8, 64, 2056}) check_swiglu(3, columns, dtype, 0);  // aligned rows
    check_swiglu(3, 64, dtype, 8);
    check_swiglu(300, 129, dtype, 0);
    check_swiglu(3, 65, dtype, 6);
    check_swiglu(0, 5, dtype, 0);
  }
}

TEST_CASE("gelu and its gradient") {
  for (const bool tanh : {true, false}) {
    for (const DType dtype : {DType::f32, DType::bf16}) {
      for (const Index columns : {1, 3, 7, 65, 127, 129}) check_gelu(7, columns, dtype, 0, tanh);
      for (const Index columns : {8, 64, 4104}) check_gelu(3, columns, dtype, 0, tanh);  // aligned rows
      check_gelu(3, 64, dtype, 8, tanh);
      check_gelu(300, 129, dtype, 0, tanh);
      check_gelu(3, 65, dtype, 6, tanh);
      check_gelu(0, 5, dtype, 0, tanh);
    }
  }
}

TEST_CASE("activations stay finite and exact far from zero") {
  OpCase t(1, true);
  const Tensor x = t.values({1, 4}, DType::f32, {-200, -90, 90, 1e4}), y = t.unset({1, 4}, DType::f32);
  for (const bool tanh : {true, false}) {
    t.launch(GeluForward{.y = y, .x = x, .tanh = tanh});
    t.expect_equal("y", y, {0, 0, 90, 1e4});
    t.launch(GeluBackward{.dx = y, .dy = t.values({1, 4}, DType::f32, {1, 1, 1, 1}), .x = x, .tanh = tanh});
    t.expect_equal("dx", y, {0, 0, 1, 1});
  }
  const Tensor gate_up = t.values({1, 4}, DType::f32, {-200, 200, 3, 5}), z = t.unset({1, 2}, DType::f32);
  t.launch(SwiGluForward{.y = z, .gate_up = gate_up});
  t.expect_equal("swiglu", z, {0, 1000});
}

TEST_CASE("activations: what they reject") {
  OpCase t(1, true);
  const Tensor x = t.normal({2, 3}, DType::f32), half = t.normal({2, 3}, DType::bf16),
               i = t.integers({2, 3}, DType::i32, 0, 2);
  check_rejects([&] { t.launch(SwiGluForward{.y = x, .gate_up = x}); },
                "swiglu: gate_up has shape (2, 3), expected (2, 6)");
  check_rejects([&] { t.launch(SwiGluBackward{.dgate_up = x, .dy = x, .gate_up = x}); },
                "swiglu_backward: gate_up has shape");
  check_rejects([&] { t.launch(GeluForward{.y = half, .x = x}); }, "gelu: y is bf16, expected f32");
  check_rejects([&] { t.launch(GeluBackward{.dx = x, .dy = x, .x = i}); },
                "gelu_backward: x is i32, expected f32 or bf16");
}
