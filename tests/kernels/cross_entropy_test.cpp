#include "kernels/cross_entropy.h"

#include <cmath>

#include "tests/kernels/op_case.h"

using namespace dstrain;
using namespace dstrain::test;

namespace {

// Sum over the rows of weight * nll, over the first `valid` of `columns` columns.
double reference(const Doubles& logits, std::size_t columns, std::size_t valid, const Tensor& targets,
                 const Doubles& weights) {
  double loss = 0;
  for (std::size_t r = 0; r < weights.size(); ++r) {
    if (weights[r] == 0) continue;
    double sum = 0, most = -INFINITY;
    for (std::size_t c = 0; c < valid; ++c) most = std::max(most, logits[r * columns + c]);
    for (std::size_t c = 0; c < valid; ++c) sum += std::exp(logits[r * columns + c] - most);
    loss += weights[r] *
            (std::log(sum) + most - logits[r * columns + static_cast<std::size_t>(targets.as<std::int32_t>()[r])]);
  }
  return loss;
}

// `ranks` equal shares of the columns; the last columns - valid ones are padding. Row 1 has weight 0 and a wild target.
void check_cross_entropy(Index rows, Index columns, Index valid, Index ranks, DType dtype, Index gap) {
  CAPTURE(rows, columns, valid, ranks, name_of(dtype), gap);
  for_each_run([&](OpCase& t) {
    const Index share = columns / ranks;
    const Tensor logits = t.normal({rows, columns}, dtype, 3), targets = t.integers({rows}, DType::i32, 0, valid);
    const Tensor weights = t.normal({rows}, DType::f32), stats = t.unset({ranks, rows, 3}, DType::f32);
    if (rows > 1) {
      weights.as<float>()[1] = 0;
      targets.as<std::int32_t>()[1] = -100;
    }
    const Tensor loss = t.values({1}, DType::f64, {2.5});
    constexpr float kScale = 0.125f;
    std::vector<Tensor> shares;
    for (Index r = 0; r < ranks; ++r) {
      shares.push_back(t.unset({rows, share}, dtype, gap));
      const Tensor part = logits.slice(1, r * share, (r + 1) * share);
      for (Index i = 0; i < rows; ++i) {
        std::copy_n(part.data + static_cast<std::size_t>(i * part.stride(0)) * size_of(dtype),
                    static_cast<std::size_t>(share) * size_of(dtype),
                    shares.back().data + static_cast<std::size_t>(i * shares.back().stride(0)) * size_of(dtype));
      }
      t.launch(CrossEntropyStats{.stats = stats.slice(0, r, r + 1).view({rows, 3}),
                                 .logits = shares.back(),
                                 .targets = targets,
                                 .first_column = r * share,
                                 .valid_columns = std::clamp<Index>(valid - r * share, 0, share)});
    }
    // In one op, where the vocabulary is whole.
    const Tensor fused = t.unset({rows, columns}, dtype, gap), fused_loss = t.values({1}, DType::f64, {2.5});
    for (Index i = 0; i < rows && ranks == 1; ++i)
      std::copy_n(logits.data + static_cast<std::size_t>(i * logits.stride(0)) * size_of(dtype),
                  static_cast<std::size_t>(columns) * size_of(dtype),
                  fused.data + static_cast<std::size_t>(i * fused.stride(0)) * size_of(dtype));
    for (const bool gradient : {false, true}) {
      if (ranks > 1) continue;
      t.launch(CrossEntropy{.loss = fused_loss,
                            .logits = fused,
                            .targets = targets,
                            .weights = weights,
                            .valid_columns = valid,
                            .scale = t.values({1}, DType::f32, {static_cast<double>(kScale)}),
                            .gradient = gradient});
    }
    Doubles losses;
    for (Index r = 0; r < ranks; ++r) {
      loss.as<double>()[0] = 2.5;
      for (const bool gradient : {false, true}) {
        t.launch(CrossEntropyFinish{.loss = loss,
                                    .logits = shares[static_cast<std::size_t>(r)],
                                    .stats = stats,
                                    .targets = targets,
                                    .weights = weights,
                                    .first_column = r * share,
                                    .valid_columns = std::clamp<Index>(valid - r * share, 0, share),
                                    .scale = t.values({1}, DType::f32, {static_cast<double>(kScale)}),
                                    .gradient = gradient});
      }
      losses.push_back(loss.as<double>()[0]);
    }
    if (ranks == 1) losses.push_back(fused_loss.as<double>()[0]);
    if (!t.compare()) return;
    const Doubles v = to_doubles(logits), w = to_doubles(weights);
    const auto width = static_cast<std::size_t>(columns), used = static_cast<std::size_t>(valid);
    const double expected = reference(v, width, used, targets, w);
    // A row's sum loses (share + 4) u, its target's logit and max are exact.
    double size = 0;
    for (const double x : w) size += std::abs(x);
    for (const double found : losses) {
      CHECK(std::abs(found - (2.5 + 2 * expected)) <= 2 * static_cast<double>(share + 8) * kUnit * size + 1e-12);
    }
    for (Index r = 0; r < ranks; ++r) {
      const Doubles stat = to_doubles(stats.slice(0, r, r + 1).view({rows, 3}));
      for (Index i = 0; i < rows; ++i) {
        double most = -INFINITY;
        for (Index c = r * share; c < std::min(valid, (r + 1) * share); ++c)
          most = std::max(most, v[static_cast<std::size_t>(i * columns + c)]);
        CHECK(stat[static_cast<std::size_t>(3 * i)] == most);
      }
    }
    // Central differences where they are quick, else their formula.
    const auto softmax_gradient = [&] {
      Doubles d(v.size());
      for (std::size_t r = 0; r < w.size(); ++r) {
        if (w[r] == 0) continue;
        double sum = 0, most = -INFINITY;
        for (std::size_t c = 0; c < used; ++c) most = std::max(most, v[r * width + c]);
        for (std::size_t c = 0; c < used; ++c) sum += std::exp(v[r * width + c] - most);
        for (std::size_t c = 0; c < used; ++c)
          d[r * width + c] = static_cast<double>(kScale) * w[r] * std::exp(v[r * width + c] - most) / sum;
        d[r * width + static_cast<std::size_t>(targets.as<std::int32_t>()[r])] -= static_cast<double>(kScale) * w[r];
      }
      return d;
    };
    const Doubles gradient =
        rows * columns > 2000
            ? softmax_gradient()
            : central_differences([&](const Doubles& x) { return Doubles{reference(x, width, used, targets, w)}; }, v,
                                  {static_cast<double>(kScale)});
    for (Index r = 0; r < ranks; ++r) {
      Doubles part, bound;
      for (Index i = 0; i < rows; ++i) {
        for (Index c = r * share; c < (r + 1) * share; ++c) {
          part.push_back(gradient[static_cast<std::size_t>(i * columns + c)]);
          const double weight = std::abs(w[static_cast<std::size_t>(i)]) * static_cast<double>(kScale);
          bound.push_back(c >= valid || weight == 0
                              ? 0.0
                              : weight * static_cast<double>(share + 30) * kUnit + kDifference * weight +
                                    kDifference / 1000 + 1.01 * unit_of(dtype) * std::abs(part.back()));
        }
      }
      t.expect("dlogits", shares[static_cast<std::size_t>(r)], part, bound);
      if (ranks == 1) t.expect("dlogits of the one op", fused, part, bound);
    }
  });
}

}  // namespace

TEST_CASE("cross_entropy over shares of the vocabulary, and its gradient") {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    for (const Index columns : {1, 3, 7, 65, 127, 129}) check_cross_entropy(3, columns, columns, 1, dtype, 0);
    check_cross_entropy(7, 66, 61, 2, dtype, 3);
    // Rows that a GPU keeps, and two that it reads again: too long, or not aligned.
    for (const Index columns : {4096, 20000, 32768, 50304, 131072})
      check_cross_entropy(3, columns, columns - 37, 1, dtype, 0);
    check_cross_entropy(3, 4096, 4089, 1, dtype, 8);
    check_cross_entropy(3, 4096, 4090, 1, dtype, 3);
    check_cross_entropy(3, 24, 15, 3, dtype, 0);  // the last share is all padding
    check_cross_entropy(0, 8, 8, 2, dtype, 0);
    check_cross_entropy(129, 129 * 3, 300, 3, dtype, 1);
  }
}

// Rows that a GPU's blocks come to after others: five of them over and over, one of weight 0, and each its first time.
TEST_CASE("cross_entropy: a row's gradient does not depend on the rows before it") {
  constexpr Index kKinds = 5;
  for (const DType dtype : {DType::f32, DType::bf16})
    for (const auto& [columns, many_rows] : {std::pair<Index, Index>{72, 1100}, {20000, 600}, {50304, 300}}) {
      CAPTURE(name_of(dtype), columns);
      for_each_run([&](OpCase& t) {
        const Index rows = t.device() == Device::cuda ? many_rows : 2 * kKinds;
        const Tensor few = t.normal({kKinds, columns}, dtype, 3), many = t.unset({rows, columns}, dtype);
        const Tensor targets = t.integers({rows}, DType::i32, 0, columns - 5), weights = t.unset({rows}, DType::f32);
        const std::size_t bytes = static_cast<std::size_t>(columns) * size_of(dtype);
        const auto row = [&](const Tensor& x, Index i) { return x.data + static_cast<std::size_t>(i) * bytes; };
        for (Index i = 0; i < rows; ++i) {
          std::copy_n(row(few, i % kKinds), bytes, row(many, i));
          targets.as<std::int32_t>()[i] = targets.as<std::int32_t>()[i % kKinds];
          weights.as<float>()[i] = static_cast<float>(i % kKinds);
        }
        for (const Tensor& logits : {few, many}) {
          const Index count = logits.dim(0);
          t.launch(CrossEntropy{.loss = t.values({1}, DType::f64, {0}),
                                .logits = logits,
                                .targets = targets.slice(0, 0, count),
                                .weights = weights.slice(0, 0, count),
                                .valid_columns = columns - 5,
                                .scale = t.values({1}, DType::f32, {1})});
        }
        Index wrong = 0;
        for (Index i = 0; i < rows; ++i) wrong += !std::equal(row(many, i), row(many, i) + bytes, row(few, i % kKinds));
        CHECK(wrong == 0);
      });
    }
}

TEST_CASE("cross_entropy: known answers, extremes and padding rows") {
  OpCase t(1, true);
  const Tensor logits = t.values({3, 3}, DType::f32, {0, std::log(2.0), NAN, 1000, -1000, NAN, NAN, NAN, NAN});
  const Tensor targets = t.values({3}, DType::i32, {1, 0, 7}), weights = t.values({3}, DType::f32, {1, 1, 0});
  const Tensor stats = t.unset({1, 3, 3}, DType::f32), loss = t.values({1}, DType::f64, {0});
  t.launch(CrossEntropyStats{.stats = stats.view({3, 3}), .logits = logits, .targets = targets, .valid_columns = 2});
  t.launch(CrossEntropyFinish{.loss = loss,
                              .logits = logits,
                              .stats = stats,
                              .targets = targets,
                              .weights = weights,
                              .valid_columns = 2,
                              .scale = t.values({1}, DType::f32, {1})});
  t.expect("loss", loss, {std::log(1.5)}, {4 * kUnit});
  const double third = 1.0 / 3;
  t.expect("dlogits", logits, {third, -third, 0, 0, 0, 0, 0, 0, 0}, {4 * kUnit, 4 * kUnit, 0, 0, 0, 0, 0, 0, 0});
  t.launch(CrossEntropyStats{.stats = stats.view({3, 3}), .logits = logits, .targets = targets, .valid_columns = 0});
  t.expect_equal("stats", stats, {-INFINITY, 0, 0, -INFINITY, 0, 0, -INFINITY, 0, 0});
}

// Every block of columns in turn holds nothing but NaN: kernels that keep a maximum a thread must not lose it.
TEST_CASE("cross_entropy: a NaN anywhere reaches the loss") {
  for (const DType dtype : {DType::f32, DType::bf16})
    for (const Index columns : {8, 4097, 8192})
      for (const Index at : {Index{0}, columns - 8}) {
        for_each_run([&](OpCase& t) {
          Doubles values(static_cast<std::size_t>(columns), 0.5);
          for (Index c = at; c < at + 8; ++c) values[static_cast<std::size_t>(c)] = std::nan("");
          const Tensor once = t.values({1, columns}, dtype, values), twice = t.values({1, columns}, dtype, values);
          const Tensor targets = t.values({1}, DType::i32, {static_cast<double>(columns / 2)});
          const Tensor weights = t.values({1}, DType::f32, {1}), stats = t.unset({1, 1, 3}, DType::f32);
          const Tensor loss = t.values({1}, DType::f64, {0}), loss_twice = t.values({1}, DType::f64, {0});
          t.launch(
              CrossEntropy{.loss = loss, .logits = once, .targets = targets, .weights = weights, .gradient = false});
          t.launch(CrossEntropyStats{.stats = stats.view({1, 3}), .logits = twice, .targets = targets});
          t.launch(CrossEntropyFinish{.loss = loss_twice,
                                      .logits = twice,
                                      .stats = stats,
                                      .targets = targets,
                                      .weights = weights,
                                      .gradient = false});
          CHECK(std::isnan(loss.as<double>()[0]));
          CHECK(std::isnan(loss_twice.as<double>()[0]));
        });
      }
}

TEST_CASE("cross_entropy: what it rejects") {
  OpCase t(1, true);
  const Tensor logits = t.normal({2, 3}, DType::f32), stats = t.unset({2, 3}, DType::f32),
               targets = t.integers({2}, DType::i32, 0, 3);
  check_rejects(
      [&] { t.launch(CrossEntropyStats{.stats = stats, .logits = logits, .targets = targets, .valid_columns = 4}); },
      "4 valid columns of 3");
  check_rejects(
      [&] {
        t.launch(CrossEntropyFinish{.loss = t.unset({1}, DType::f32),
                                    .logits = logits,
                                    .stats = stats.view({1, 2, 3}),
                                    .targets = targets,
                                    .weights = t.normal({2}, DType::f32)});
      },
      "cross_entropy: loss is f32, expected f64");
}
