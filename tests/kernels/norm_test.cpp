// RMSNorm and LayerNorm, forward and backward. Bounds: with n the normalised row, A = rstd (|x| + mean |x|) bounds what
// enters it; a sum of C terms loses at most C u of its absolute terms.
#include <cmath>

#include "kernels/layer_norm.h"
#include "kernels/rms_norm.h"
#include "tests/kernels/op_case.h"

using namespace dstrain;
using namespace dstrain::test;

namespace {

constexpr float kEps = 1e-3f;

// Reference over (rows, C): y, given x, weight and bias (null for RMSNorm).
Doubles reference(const Doubles& x, const Doubles& weight, const Doubles* bias) {
  const std::size_t columns = weight.size();
  Doubles y(x.size());
  for (std::size_t r = 0; r < x.size() / columns; ++r) {
    const double* const row = x.data() + r * columns;
    double mean = 0, squares = 0;
    for (std::size_t c = 0; c < columns && bias != nullptr; ++c) mean += row[c] / static_cast<double>(columns);
    for (std::size_t c = 0; c < columns; ++c) squares += (row[c] - mean) * (row[c] - mean);
    const double rstd = 1 / std::sqrt(squares / static_cast<double>(columns) + static_cast<double>(kEps));
    for (std::size_t c = 0; c < columns; ++c) {
      y[r * columns + c] = (row[c] - mean) * rstd * weight[c] + (bias != nullptr ? (*bias)[c] : 0.0);
    }
  }
  return y;
}

struct RowSizes {
  Doubles mean_x, rstd;  // a row's mean |x| and rstd
};
RowSizes row_sizes(const Doubles& x, std::size_t columns, bool centred) {
  RowSizes out;
  for (std::size_t r = 0; r < x.size() / columns; ++r) {
    double size = 0, mean = 0, squares = 0;
    for (std::size_t c = 0; c < columns; ++c) size += std::abs(x[r * columns + c]), mean += x[r * columns + c];
    mean = centred ? mean / static_cast<double>(columns) : 0.0;
    for (std::size_t c = 0; c < columns; ++c) squares += std::pow(x[r * columns + c] - mean, 2);
    out.mean_x.push_back(size / static_cast<double>(columns));
    out.rstd.push_back(1 / std::sqrt(squares / static_cast<double>(columns) + static_cast<double>(kEps)));
  }
  return out;
}

// The gradients of sum(dy y), written out; for sizes that differences take too long for.
struct Gradients {
  Doubles x, weight;
};
Gradients gradients(const Doubles& x, const Doubles& weight, const Doubles& dy, bool centred) {
  const std::size_t columns = weight.size();
  const auto n = static_cast<double>(columns);
  Gradients out{Doubles(x.size()), Doubles(columns)};
  const RowSizes sizes = row_sizes(x, columns, centred);
  for (std::size_t r = 0; r < sizes.rstd.size(); ++r) {
    const std::size_t begin = r * columns, end = begin + columns;
    double mean = 0, mean_g = 0, mean_gn = 0;
    for (std::size_t i = begin; i < end && centred; ++i) mean += x[i] / n;
    const auto normal = [&](std::size_t i) { return (x[i] - mean) * sizes.rstd[r]; };
    for (std::size_t i = begin; i < end; ++i) {
      const double g = dy[i] * weight[i - begin];
      if (centred) mean_g += g / n;
      mean_gn += g * normal(i) / n;
      out.weight[i - begin] += dy[i] * normal(i);
    }
    for (std::size_t i = begin; i < end; ++i)
      out.x[i] = sizes.rstd[r] * (dy[i] * weight[i - begin] - mean_g - normal(i) * mean_gn);
  }
  return out;
}

struct NormCase {
  Index rows, columns;
  DType dtype = DType::f32, weight = DType::f32;
  bool branch = false, layer = false;
  Index gap = 0;
  Write write = Write::overwrite;
};

void check_forward(const NormCase& p) {
  CAPTURE(p.rows, p.columns, name_of(p.dtype), p.branch, p.layer, p.gap);
  for_each_run([&](OpCase& t) {
    const Shape shape{p.rows, p.columns};
    const Tensor x = t.normal(shape, p.dtype, 1, p.gap), y = t.unset(shape, p.dtype, p.gap);
    const Tensor weight = t.normal({p.columns}, p.weight), bias = t.normal({p.columns}, p.weight);
    const Tensor branch = p.branch ? t.normal(shape, p.dtype) : Tensor{};
    const Tensor sum = p.branch ? (p.gap > 0 ? x : t.unset(shape, p.dtype, p.gap)) : Tensor{};
    const Tensor mean = t.unset({p.rows}, DType::f32), rstd = t.unset({p.rows}, DType::f32);
    const Doubles before = to_doubles(x);
    if (p.layer) {
      t.launch(LayerNormForward{.y = y,
                                .mean = mean,
                                .rstd = rstd,
                                .sum = sum,
                                .x = x,
                                .branch = branch,
                                .weight = weight,
                                .bias = bias,
                                .eps = kEps});
    } else {
      t.launch(
          RmsNormForward{.y = y, .rstd = rstd, .sum = sum, .x = x, .branch = branch, .weight = weight, .eps = kEps});
    }
    if (!t.compare()) return;
    const Doubles w = to_doubles(weight), b = to_doubles(bias), input = to_doubles(p.branch ? sum : x);
    if (p.branch) {
      const Doubles added = to_doubles(branch);
      const Doubles expected = generate(added.size(), [&](std::size_t i) { return before[i] + added[i]; });
      t.expect("sum", sum, expected,
               generate(added.size(), [&](std::size_t i) { return unit_of(p.dtype) * std::abs(expected[i]) * 1.01; }));
    }
    const Doubles expected = reference(input, w, p.layer ? &b : nullptr);
    const RowSizes sizes = row_sizes(input, w.size(), p.layer);
    const double loss = static_cast<double>(p.columns + 10) * kUnit;
    t.expect("y", y, expected, generate(expected.size(), [&](std::size_t i) {
               const std::size_t r = i / w.size(), c = i % w.size();
               const double scaled =
                   std::abs(w[c]) * sizes.rstd[r] * (std::abs(input[i]) + (p.layer ? sizes.mean_x[r] : 0.0));
               return 2 * loss * (scaled + std::abs(b[c])) +
                      2.02 * unit_of(p.dtype) * (p.layer ? std::abs(expected[i]) : scaled);
             }));
    t.expect("rstd", rstd, sizes.rstd, generate(sizes.rstd.size(), [&](std::size_t r) {
               const double shift = p.layer ? sizes.rstd[r] * sizes.mean_x[r] : 0.0;
               return loss * sizes.rstd[r] * (1 + shift);
             }));
  });
}

void check_backward(const NormCase& p) {
  CAPTURE(p.rows, p.columns, name_of(p.dtype), p.branch, p.layer, p.gap);
  for_each_run([&](OpCase& t) {
    const Shape shape{p.rows, p.columns};
    const Tensor x = t.normal(shape, p.dtype, 1, p.gap), dy = t.normal(shape, p.dtype, 1, p.gap);
    const Tensor residual = p.branch ? t.normal(shape, p.dtype, 1, p.gap) : Tensor{};
    const Tensor dx = p.gap > 0 ? (p.branch ? residual : dy) : t.unset(shape, p.dtype);
    const Tensor weight = t.normal({p.columns}, p.weight), bias = t.normal({p.columns}, p.weight);
    const bool accumulate = p.write == Write::accumulate;
    const auto sums = [&] { return accumulate ? t.normal({p.columns}, DType::f32) : t.unset({p.columns}, DType::f32); };
    const Tensor dweight = sums(), dbias = sums();
    const Tensor mean = t.unset({p.rows}, DType::f32), rstd = t.unset({p.rows}, DType::f32);
    const Tensor y = t.unset(shape, p.dtype);
    const Doubles vx = to_doubles(x), vdy = to_doubles(dy), w = to_doubles(weight), b = to_doubles(bias);
    const Doubles before_w = to_doubles(dweight), before_b = to_doubles(dbias);
    const Doubles vres = p.branch ? to_doubles(residual) : Doubles(vx.size());
    if (p.layer) {
      t.launch(
          LayerNormForward{.y = y, .mean = mean, .rstd = rstd, .x = x, .weight = weight, .bias = bias, .eps = kEps});
      t.launch(LayerNormBackward{.dx = dx,
                                 .dweight = dweight,
                                 .dbias = dbias,
                                 .dy = dy,
                                 .x = x,
                                 .mean = mean,
                                 .rstd = rstd,
                                 .weight = weight,
                                 .dresidual = residual,
                                 .write = p.write});
    } else {
      t.launch(RmsNormForward{.y = y, .rstd = rstd, .x = x, .weight = weight, .eps = kEps});
      t.launch(RmsNormBackward{.dx = dx,
                               .dweight = dweight,
                               .dy = dy,
                               .x = x,
                               .rstd = rstd,
                               .weight = weight,
                               .dresidual = residual,
                               .write = p.write});
    }
    if (!t.compare()) return;
    const Doubles* const shift = p.layer ? &b : nullptr;
    const std::size_t columns = w.size();
    const RowSizes sizes = row_sizes(vx, columns, p.layer);
    const double loss = 2 * static_cast<double>(p.columns + 20) * kUnit;
    // A: bound of |n|; G: of the terms of dx before rstd
    const auto a = [&](std::size_t i) {
      return sizes.rstd[i / columns] * (std::abs(vx[i]) + (p.layer ? sizes.mean_x[i / columns] : 0.0));
    };
    const bool small = vx.size() < 700;
    const Gradients written = gradients(vx, w, vdy, p.layer);
    Doubles expected =
        small ? central_differences([&](const Doubles& v) { return reference(v, w, shift); }, vx, vdy) : written.x;
    bool agree = true;  // what is written out with the differences
    Doubles bound(vx.size()), w_bound(columns), b_bound(columns), w_size(columns), b_size(columns);
    for (std::size_t r = 0; r < sizes.rstd.size(); ++r) {
      double mean_g = 0, mean_gn = 0, sum_dy = 0;
      for (std::size_t i = r * columns; i < (r + 1) * columns; ++i) {
        const double g = std::abs(vdy[i] * w[i % columns]);
        mean_g += g / static_cast<double>(columns);
        mean_gn += g * a(i) / static_cast<double>(columns);
        sum_dy += std::abs(vdy[i]);
        w_size[i % columns] += std::abs(vdy[i]) * a(i);
        b_size[i % columns] += std::abs(vdy[i]);
      }
      for (std::size_t i = r * columns; i < (r + 1) * columns; ++i) {
        const double terms =
            sizes.rstd[r] * (std::abs(vdy[i] * w[i % columns]) + (p.layer ? mean_g : 0.0) + a(i) * mean_gn);
        const double difference = kDifference * sum_dy * (1 + std::pow(sizes.rstd[r], 3));
        agree = agree && std::abs(expected[i] - written.x[i]) <= difference;
        expected[i] += vres[i];
        // rstd^3 enters the third derivative of the differences
        bound[i] = loss * (1 + a(i)) * terms + kUnit * std::abs(vres[i]) +
                   1.01 * unit_of(p.dtype) * std::abs(expected[i]) + difference;
      }
    }
    t.expect("dx", dx, expected, bound);
    Doubles expected_w =
        small ? central_differences([&](const Doubles& v) { return reference(vx, v, shift); }, w, vdy) : written.weight;
    Doubles expected_b(columns);
    for (std::size_t i = 0; i < vdy.size(); ++i) expected_b[i % columns] += vdy[i];
    for (std::size_t c = 0; c < columns; ++c) {
      agree = agree && std::abs(expected_w[c] - written.weight[c]) <= kDifference * b_size[c];
      if (accumulate) expected_w[c] += before_w[c], expected_b[c] += before_b[c];
      const double rows = static_cast<double>(p.rows + 1) * kUnit;
      w_bound[c] =
          (loss + rows) * w_size[c] + (accumulate ? rows * std::abs(before_w[c]) : 0.0) + kDifference * b_size[c];
      b_bound[c] = rows * (b_size[c] + (accumulate ? std::abs(before_b[c]) : 0.0));
    }
    CHECK(agree);
    t.expect("dweight", dweight, expected_w, w_bound);
    if (p.layer) t.expect("dbias", dbias, expected_b, b_bound);
  });
}

void check_norm(bool layer) {
  for (const Index columns : {1, 3, 7, 65, 127, 129}) {
    check_forward({.rows = 5, .columns = columns, .layer = layer});
    check_forward({3, columns, DType::bf16, DType::bf16, true, layer});
    check_forward({.rows = 3, .columns = columns, .branch = true, .layer = layer, .gap = 4});
    check_backward({.rows = 3, .columns = columns, .layer = layer});
    check_backward({2, columns, DType::bf16, DType::bf16, true, layer, 3});
  }
  check_forward({.rows = 0, .columns = 7, .layer = layer});
  check_forward({.rows = 700, .columns = 129, .layer = layer});
  check_backward({.rows = 0, .columns = 7, .layer = layer});
  check_backward({.rows = 0, .columns = 7, .layer = layer, .write = Write::accumulate});
  check_backward({.rows = 67, .columns = 5, .branch = true, .layer = layer, .write = Write::accumulate});
  check_backward({.rows = 5, .columns = 9, .layer = layer, .gap = 2});

  // Aligned rows, which a GPU reads in vectors: one, two or more a thread; rows fewer and more than its blocks.
  for (const Index columns : {4, 64, 1024, 1028, 2052}) {
    check_forward({.rows = 3, .columns = columns, .branch = true, .layer = layer, .gap = columns == 64 ? 4 : 0});
    check_backward({.rows = 3, .columns = columns, .branch = true, .layer = layer, .gap = columns == 64 ? 4 : 0});
  }
  for (const Index columns : {8, 64, 2048, 2056, 4104}) {
    const Index gap = columns == 64 ? 8 : 0;
    check_forward({3, columns, DType::bf16, DType::bf16, true, layer, gap});
    check_backward({3, columns, DType::bf16, DType::f32, true, layer, gap, Write::accumulate});
  }
  check_forward({.rows = 5000, .columns = 16, .dtype = DType::bf16, .layer = layer});
  check_backward({.rows = 7001, .columns = 16, .dtype = DType::bf16, .weight = DType::bf16, .layer = layer});
  check_backward(
      {.rows = 801, .columns = 2048, .dtype = DType::bf16, .weight = DType::bf16, .branch = true, .layer = layer});
  check_backward({.rows = 300, .columns = 2056, .dtype = DType::bf16, .branch = true, .layer = layer});
  check_backward({.rows = 300, .columns = 2052, .layer = layer});
  check_backward({.rows = 5000, .columns = 5, .layer = layer});
}

}  // namespace

TEST_CASE("rms_norm and its gradient") { check_norm(false); }
TEST_CASE("layer_norm and its gradient") { check_norm(true); }

TEST_CASE("norms: what they reject") {
  OpCase t(1, true);
  const Tensor x = t.normal({2, 3}, DType::f32), y = t.unset({2, 3}, DType::f32), row = t.unset({2}, DType::f32);
  const Tensor w = t.normal({4}, DType::f32), w3 = t.normal({3}, DType::f32);
  check_rejects([&] { t.launch(RmsNormForward{.y = y, .rstd = row, .x = x, .weight = w}); },
                "rms_norm: weight has shape (4), expected (3)");
  check_rejects([&] { t.launch(RmsNormForward{.y = y, .rstd = row, .x = x, .branch = x, .weight = w3}); },
                "branch and sum come together");
  check_rejects([&] { t.launch(RmsNormBackward{.dx = y, .dweight = w, .dy = x, .x = x, .rstd = row, .weight = w3}); },
                "rms_norm_backward: dweight has shape (4), expected (3)");
  check_rejects([&] { t.launch(LayerNormForward{.y = y, .mean = row, .rstd = row, .x = x, .weight = w3, .bias = w}); },
                "layer_norm: bias has shape (4), expected (3)");
  check_rejects(
      [&] {
        t.launch(LayerNormBackward{
            .dx = y, .dweight = w3, .dbias = w, .dy = x, .x = x, .mean = row, .rstd = row, .weight = w3});
      },
      "layer_norm_backward: dbias has shape (4), expected (3)");
}
