#include "kernels/matmul.h"

#include <cmath>
#include <optional>

#include "tests/kernels/op_case.h"

using namespace dstrain;
using namespace dstrain::test;

namespace {

struct MatmulCase {
  Index m, n, k;
  bool transpose_a, transpose_b;
  DType a = DType::f32, b = DType::f32, c = DType::f32;
  Write write = Write::overwrite;
  bool bias = false;
  Index gap = 0;
  std::optional<DType> bias_dtype = {};  // b's when left out
};

// |error| <= (k + 3) u (sum |a| |b| + |bias| + |c before|), then one rounding to storage.
void check_matmul(const MatmulCase& p) {
  CAPTURE(p.m, p.n, p.k, p.transpose_a, p.transpose_b, name_of(p.a), name_of(p.c), p.bias, p.gap);
  for_each_run([&](OpCase& t) {
    const Tensor a = t.normal(p.transpose_a ? Shape{p.k, p.m} : Shape{p.m, p.k}, p.a, 1, p.gap);
    const Tensor b = t.normal(p.transpose_b ? Shape{p.n, p.k} : Shape{p.k, p.n}, p.b, 1, p.gap);
    const bool accumulate = p.write == Write::accumulate;
    const Tensor c = accumulate ? t.normal({p.m, p.n}, p.c, 1, p.gap) : t.unset({p.m, p.n}, p.c, p.gap);
    const Tensor bias = p.bias ? t.normal({p.n}, p.bias_dtype.value_or(p.b)) : Tensor{};
    const Doubles before = to_doubles(c);
    t.launch(Matmul{.c = c,
                    .a = a,
                    .b = b,
                    .transpose_a = p.transpose_a,
                    .transpose_b = p.transpose_b,
                    .write = p.write,
                    .bias = bias});
    if (!t.compare()) return;
    const Doubles va = to_doubles(a), vb = to_doubles(b), vbias = p.bias ? to_doubles(bias) : Doubles{};
    Doubles expected, bound;
    for (Index i = 0; i < p.m; ++i) {
      for (Index j = 0; j < p.n; ++j) {
        const auto at = static_cast<std::size_t>(i * p.n + j);
        double sum = accumulate ? before[at] : 0.0;
        sum += p.bias ? vbias[static_cast<std::size_t>(j)] : 0.0;
        double size =
            (accumulate ? std::abs(before[at]) : 0.0) + (p.bias ? std::abs(vbias[static_cast<std::size_t>(j)]) : 0.0);
        for (Index l = 0; l < p.k; ++l) {
          const double x = va[static_cast<std::size_t>(p.transpose_a ? l * p.m + i : i * p.k + l)];
          const double y = vb[static_cast<std::size_t>(p.transpose_b ? j * p.k + l : l * p.n + j)];
          sum += x * y;
          size += std::abs(x * y);
        }
        expected.push_back(sum);
        bound.push_back(static_cast<double>(p.k + 3) * kUnit * size + unit_of(p.c) * std::abs(sum) * (1 + 1e-3));
      }
    }
    t.expect("c", c, expected, bound);
  });
}

struct EpilogueCase {
  Index m, n, k;
  bool transpose_b;
  DType dtype;
  bool bias = false;
  Index gap = 0;
};

double gate(double x) { return (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x))) / 2; }
double gelu(double x) { return x * gate(x); }
double gelu_slope(double x) {
  return gate(x) + x * gate(x) * (1 - gate(x)) * 2 * std::sqrt(2 / M_PI) * (1 + 3 * 0.044715 * x * x);
}

// How far the gate of gelu_tanh may be off: (16 + 8 |x|^3) u; fused with a bf16 product also tanh.approx.f32's 2^-11.
double gate_loss(double x, DType dtype) {
  return (16 + 8 * std::pow(std::abs(x), 3)) * kUnit + (dtype == DType::bf16 ? 0x1p-12 : 0.0);
}

// The product's own bound as in check_matmul; |gelu'| is at most 1.13 and |gelu''| 1.6. Where the epilogue is not fused
// the product is rounded to storage first.
void check_epilogue(const EpilogueCase& p) {
  CAPTURE(p.m, p.n, p.k, p.transpose_b, name_of(p.dtype), p.bias, p.gap);
  for_each_run([&](OpCase& t) {
    const Tensor a = t.normal({p.m, p.k}, p.dtype, 1, p.gap);
    const Tensor b = t.normal(p.transpose_b ? Shape{p.n, p.k} : Shape{p.k, p.n}, p.dtype,
                              2 / std::sqrt(static_cast<double>(p.k)), p.gap);
    const Tensor bias = p.bias ? t.normal({p.n}, p.dtype) : Tensor{};
    const Tensor c = t.unset({p.m, p.n}, p.dtype, p.gap), pre = t.unset({p.m, p.n}, p.dtype, p.gap);
    const Tensor given = t.normal({p.m, p.n}, p.dtype, 2, p.gap), gradient = t.unset({p.m, p.n}, p.dtype, p.gap);
    Matmul op{.c = c, .a = a, .b = b, .transpose_b = p.transpose_b, .bias = bias};
    op.epilogue = Epilogue::gelu;
    op.pre = pre;
    t.launch(op);
    op.c = gradient;
    op.bias = {};
    op.epilogue = Epilogue::gelu_gradient;
    op.pre = given;
    t.launch(op);
    if (!t.compare()) return;
    const Doubles va = to_doubles(a), vb = to_doubles(b), vpre = to_doubles(given),
                  vbias = p.bias ? to_doubles(bias) : Doubles(static_cast<std::size_t>(p.n));
    const double store = 1.01 * unit_of(p.dtype);
    Doubles before, before_bound, after, after_bound, slope, slope_bound;
    for (Index i = 0; i < p.m; ++i) {
      for (Index j = 0; j < p.n; ++j) {
        double product = 0, size = 0;
        for (Index l = 0; l < p.k; ++l) {
          const double term = va[static_cast<std::size_t>(i * p.k + l)] *
                              vb[static_cast<std::size_t>(p.transpose_b ? j * p.k + l : l * p.n + j)];
          product += term;
          size += std::abs(term);
        }
        const double added = vbias[static_cast<std::size_t>(j)], x = product + added;
        const double rounds = static_cast<double>(p.k + 3) * kUnit;
        const double x_loss = rounds * (size + std::abs(added)) + store * std::abs(x);
        before.push_back(x);
        before_bound.push_back(x_loss);
        after.push_back(gelu(x));
        after_bound.push_back(1.13 * x_loss + 2 * gate_loss(x, p.dtype) * std::min(1 + x_loss, std::abs(x) + x_loss) +
                              store * std::abs(gelu(x)));
        const double at = vpre[static_cast<std::size_t>(i * p.n + j)], value = product * gelu_slope(at);
        slope.push_back(value);
        // x s (1 - s) is below 1/2 and its factor 2 sqrt(2 / pi) (1 + ...) is known to a few u
        const double slope_loss = gate_loss(at, p.dtype) * (2 + 2 * std::abs(at) * (1 + 3 * 0.044715 * at * at));
        slope_bound.push_back(1.13 * (rounds * size + store * std::abs(product)) + std::abs(product) * slope_loss +
                              store * std::abs(value));
      }
    }
    t.expect("pre", pre, before, before_bound);
    t.expect("c", c, after, after_bound);
    t.expect("gradient", gradient, slope, slope_bound);
  });
}

}  // namespace

TEST_CASE("matmul: sizes and transposes") {
  for (const bool transpose_a : {false, true}) {
    for (const bool transpose_b : {false, true}) {
      for (const Index m : {1, 3, 7, 65, 127}) {
        for (const Index n : {1, 7, 129}) check_matmul({m, n, 65, transpose_a, transpose_b});
      }
      check_matmul({.m = 65, .n = 127, .k = 129, .transpose_a = transpose_a, .transpose_b = transpose_b, .gap = 5});
      check_matmul({.m = 65,
                    .n = 3,
                    .k = 7,
                    .transpose_a = transpose_a,
                    .transpose_b = transpose_b,
                    .write = Write::accumulate,
                    .gap = 2});
      check_matmul({300, 530, 9, transpose_a, transpose_b});
    }
  }
}

TEST_CASE("matmul: bias, bf16 storage, accumulation") {
  constexpr DType half = DType::bf16;
  check_matmul({.m = 65, .n = 127, .k = 33, .transpose_a = false, .transpose_b = true, .bias = true});
  check_matmul({.m = 7,
                .n = 129,
                .k = 33,
                .transpose_a = false,
                .transpose_b = true,
                .a = half,
                .b = half,
                .c = half,
                .bias = true,
                .gap = 3});
  check_matmul({.m = 65,
                .n = 33,
                .k = 127,
                .transpose_a = true,
                .transpose_b = false,
                .a = half,
                .b = half,
                .c = DType::f32,
                .write = Write::accumulate});
  check_matmul({.m = 65,
                .n = 33,
                .k = 127,
                .transpose_a = false,
                .transpose_b = false,
                .a = half,
                .b = half,
                .c = half,
                .write = Write::accumulate,
                .gap = 1});
  check_matmul({5, 7, 3, false, false, half, DType::f32, DType::f32});
}

// Sizes and strides that a GPU's fast kernels take, and one step beside them.
TEST_CASE("matmul: aligned sizes in every mix of dtypes") {
  constexpr DType kHalf = DType::bf16, kFull = DType::f32;
  for (const bool transpose_a : {false, true}) {
    for (const bool transpose_b : {false, true}) {
      for (const DType a : {kHalf, kFull}) {
        for (const DType b : {kHalf, kFull}) {
          for (const DType c : {kHalf, kFull}) {
            for (const Write write : {Write::overwrite, Write::accumulate})
              check_matmul({136, 72, 264, transpose_a, transpose_b, a, b, c, write, write == Write::overwrite, 8});
          }
        }
      }
    }
  }
  check_matmul({136, 72, 264, false, true, kHalf, kHalf, kHalf, Write::overwrite, true, 0, kFull});
  check_matmul({136, 72, 264, false, true, kHalf, kHalf, kFull, Write::overwrite, true, 0, kFull});
  check_matmul({136, 72, 264, false, true, kFull, kFull, kFull, Write::overwrite, true, 0, kHalf});
  for (const Index off : {0, 1, 2, 4}) {  // rows aligned to 16, 2, 4 and 8 bytes
    for (const DType c : {kHalf, kFull})
      check_matmul({96 + off, 64 + off, 128 + off, false, true, kHalf, kHalf, c, Write::overwrite, true});
    check_matmul({96 + off, 64 + off, 128 + off, true, false, kHalf, kHalf, kFull, Write::accumulate});
  }
  check_matmul({1, 512, 256, false, true, kHalf, kHalf, kHalf});  // decoding
  check_matmul({256, 1, 512, false, true, kHalf, kHalf, kHalf});
}

TEST_CASE("matmul: GELU of the result and its gradient") {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    check_epilogue({136, 72, 128, true, dtype, true, 8});
    check_epilogue({136, 72, 128, false, dtype, false});
    check_epilogue({128, 256, 64, true, dtype, true});
    check_epilogue({65, 33, 17, true, dtype, true, 3});
    check_epilogue({1, 7, 3, false, dtype});
    check_epilogue({3, 8, 0, true, dtype, true});
    check_epilogue({0, 8, 3, true, dtype, true});
  }
}

TEST_CASE("matmul: empty sizes") {
  check_matmul({0, 7, 3, false, false});
  check_matmul({.m = 7, .n = 0, .k = 3, .transpose_a = false, .transpose_b = true, .bias = true});
  check_matmul({.m = 3, .n = 7, .k = 0, .transpose_a = false, .transpose_b = false, .bias = true});
  check_matmul({.m = 3, .n = 7, .k = 0, .transpose_a = true, .transpose_b = false, .write = Write::accumulate});
}

TEST_CASE("matmul: what it rejects, and its cost") {
  OpCase t(1, true);
  const Tensor a = t.normal({2, 3}, DType::f32), b = t.normal({4, 5}, DType::f32), c = t.unset({2, 5}, DType::f32);
  check_rejects([&] { t.launch(Matmul{.c = c, .a = a, .b = b}); }, "inner size 3, b (4, 5) has 4");
  const Tensor b3 = t.normal({3, 5}, DType::f32), bias = t.normal({5}, DType::f32);
  check_rejects([&] { t.launch(Matmul{.c = c, .a = a, .b = b3, .write = Write::accumulate, .bias = bias}); },
                "bias of 5 elements with accumulate");
  Matmul fused{.c = c, .a = a, .b = b3, .write = Write::accumulate, .epilogue = Epilogue::gelu, .pre = c};
  check_rejects([&] { t.launch(fused); }, "a GELU with accumulate");
  fused.write = Write::overwrite;
  fused.pre = t.unset({2, 4}, DType::f32);
  check_rejects([&] { t.launch(fused); }, "matmul: pre has shape (2, 4), expected (2, 5)");
  fused.epilogue = Epilogue::gelu_gradient;
  fused.bias = bias;
  check_rejects([&] { t.launch(fused); }, "bias of 5 elements with a gradient");
  const Cost cost = Matmul{.c = c, .a = a, .b = b3, .bias = bias}.cost();
  CHECK(cost.flops == 2 * 2 * 3 * 5);
  CHECK(cost.flops_full == cost.flops);
  CHECK(cost.bytes == 4 * (2 * 5 + 2 * 3 + 3 * 5 + 5));
}

// |error| <= rows u sum |dy|.
TEST_CASE("bias_gradient") {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    for (const Write write : {Write::overwrite, Write::accumulate}) {
      for (const auto& [rows, columns] : {std::pair<Index, Index>{0, 7}, {1, 1}, {127, 65}, {4200, 3}}) {
        for_each_run([&, rows = rows, columns = columns](OpCase& t) {
          const Tensor dy = t.normal({rows, columns}, dtype, 1, 3);
          const Tensor grad =
              write == Write::accumulate ? t.normal({columns}, DType::f32) : t.unset({columns}, DType::f32);
          Doubles expected = write == Write::accumulate ? to_doubles(grad) : Doubles(static_cast<std::size_t>(columns));
          t.launch(BiasGradient{.grad = grad, .dy = dy, .write = write});
          if (!t.compare()) return;
          const Doubles v = to_doubles(dy);
          Doubles size = generate(expected.size(), [&](std::size_t i) { return std::abs(expected[i]); });
          for (std::size_t i = 0; i < v.size(); ++i) {
            expected[i % expected.size()] += v[i];
            size[i % expected.size()] += std::abs(v[i]);
          }
          for (double& s : size) s *= static_cast<double>(rows + 1) * kUnit;
          t.expect("grad", grad, expected, size);
        });
      }
    }
  }
  OpCase t(1, true);
  check_rejects(
      [&] {
        t.launch(BiasGradient{.grad = t.unset({3}, DType::f32), .dy = t.normal({2, 4}, DType::f32)});
      },
      "bias_gradient: grad has shape (3), expected (4)");
}
