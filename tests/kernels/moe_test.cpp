// Grouped matmuls, what lies between them, and the heads of latent attention.
#include <cmath>
#include <numeric>

#include "kernels/experts.h"
#include "kernels/grouped_matmul.h"
#include "kernels/mla.h"
#include "kernels/swiglu.h"
#include "tests/kernels/op_case.h"

using namespace dstrain;
using namespace dstrain::test;

namespace {

struct Groups {
  std::vector<Index> sizes;
  Index rows() const { return std::accumulate(sizes.begin(), sizes.end(), Index{0}); }
  Index count() const { return static_cast<Index>(sizes.size()); }
  Doubles offsets() const {
    Doubles o{0};
    for (const Index n : sizes) o.push_back(o.back() + static_cast<double>(n));
    return o;
  }
  Index group_of(Index row) const {
    Index g = 0;
    while (row >= sizes[static_cast<std::size_t>(g)]) row -= sizes[static_cast<std::size_t>(g++)];
    return g;
  }
};

void check_product(const Groups& groups, Index n, Index k, DType dtype, bool transpose_b, bool gather, Index gap) {
  CAPTURE(groups.rows(), groups.count(), n, k, name_of(dtype), transpose_b, gather, gap);
  for_each_run([&](OpCase& t) {
    const Index rows = groups.rows(), sources = gather ? 17 : rows;
    const Tensor a = t.normal({sources, k}, dtype, 1, gap), c = t.unset({rows, n}, dtype, gap);
    const Tensor b = transpose_b ? t.normal({groups.count() * n, k}, dtype, 1, gap)
                                 : t.normal({groups.count() * k, n}, dtype, 1, gap);
    const Tensor offsets = t.values({groups.count() + 1}, DType::i32, groups.offsets());
    const Tensor rows_of = gather ? t.integers({rows}, DType::i32, 0, sources) : Tensor{};
    t.launch(GroupedMatmul{.c = c, .a = a, .b = b, .offsets = offsets, .rows_of = rows_of, .transpose_b = transpose_b});
    if (!t.compare()) return;
    const Doubles x = to_doubles(a), y = to_doubles(b);
    Doubles expected, bound;
    for (Index p = 0; p < rows; ++p) {
      const Index row = gather ? rows_of.as<std::int32_t>()[p] : p, g = groups.group_of(p);
      for (Index j = 0; j < n; ++j) {
        double sum = 0, size = 0;
        for (Index i = 0; i < k; ++i) {
          const double term = x[static_cast<std::size_t>(row * k + i)] *
                              y[static_cast<std::size_t>(transpose_b ? (g * n + j) * k + i : (g * k + i) * n + j)];
          sum += term;
          size += std::fabs(term);
        }
        expected.push_back(sum);
        bound.push_back(static_cast<double>(k + 1) * kUnit * size + 1.01 * unit_of(dtype) * std::fabs(sum));
      }
    }
    t.expect("c", c, expected, bound);
  });
}

void check_group_gradient(const Groups& groups, Index m, Index n, DType dtype, Write write, int gathers,
                          DType out = DType::f32) {
  CAPTURE(groups.rows(), groups.count(), m, n, name_of(dtype), name_of(out), static_cast<int>(write), gathers);
  for_each_run([&](OpCase& t) {
    const Index rows = groups.rows(), sources = 17;
    const bool gather_a = gathers == 1, gather_b = gathers == 2;
    const Tensor a = t.normal({gather_a ? sources : rows, m}, dtype),
                 b = t.normal({gather_b ? sources : rows, n}, dtype);
    const Tensor c = t.normal({groups.count() * m, n}, out);
    const Doubles before = to_doubles(c);
    const Tensor offsets = t.values({groups.count() + 1}, DType::i32, groups.offsets());
    const Tensor rows_of = t.integers({rows}, DType::i32, 0, sources);
    t.launch(GroupedGradient{.c = c,
                             .a = a,
                             .b = b,
                             .offsets = offsets,
                             .a_rows_of = gather_a ? rows_of : Tensor{},
                             .b_rows_of = gather_b ? rows_of : Tensor{},
                             .rows = rows,
                             .write = write});
    if (!t.compare()) return;
    const Doubles x = to_doubles(a), y = to_doubles(b);
    Doubles expected(before.size(), 0.0), size(before.size(), 0.0), bound;
    if (write == Write::accumulate) expected = before;
    for (std::size_t i = 0; i < expected.size(); ++i) size[i] = std::fabs(expected[i]);
    for (Index p = 0; p < rows; ++p) {
      const Index at = rows_of.as<std::int32_t>()[p], g = groups.group_of(p);
      for (Index i = 0; i < m; ++i)
        for (Index j = 0; j < n; ++j) {
          const double term = x[static_cast<std::size_t>((gather_a ? at : p) * m + i)] *
                              y[static_cast<std::size_t>((gather_b ? at : p) * n + j)];
          expected[static_cast<std::size_t>((g * m + i) * n + j)] += term;
          size[static_cast<std::size_t>((g * m + i) * n + j)] += std::fabs(term);
        }
    }
    // A bf16 sum is rounded, and so may be what is added to it.
    for (std::size_t i = 0; i < size.size(); ++i) {
      const double added = write == Write::accumulate ? std::fabs(expected[i] - before[i]) : 0.0;
      const double rounding = out == DType::bf16 ? 1.01 * unit_of(out) * (std::fabs(expected[i]) + added) : 0.0;
      bound.push_back(static_cast<double>(rows + 1) * kUnit * size[i] + rounding);
    }
    t.expect("c", c, expected, bound);
  });
}

}  // namespace

TEST_CASE("grouped_matmul") {
  for (const DType dtype : {DType::f32, DType::bf16})
    for (const bool transpose_b : {false, true})
      for (const bool gather : {false, true}) {
        check_product({{3, 0, 5, 1}}, 7, 9, dtype, transpose_b, gather, 3);
        check_product({{0, 0, 300}}, 24, 40, dtype, transpose_b, gather, 0);  // all to one
        check_product({{129, 1, 0, 64}}, 136, 72, dtype, transpose_b, gather, 8);
        check_product({{2}}, 1, 1, dtype, transpose_b, gather, 0);
        check_product({{0, 0}}, 8, 8, dtype, transpose_b, gather, 0);
      }
  check_product({std::vector<Index>(70, 3)}, 16, 16, DType::bf16, true, true, 0);
  // Whole tiles and one that the group ends in; columns that end in a buffer.
  for (const bool transpose_b : {false, true}) check_product({{256, 130}}, 360, 72, DType::bf16, transpose_b, false, 8);
  // More steps than a pipeline of loads has stages, more tiles than one, the last ones not full.
  for (const bool transpose_b : {false, true})
    check_product({{150, 0, 7, 40}}, 272, 456, DType::bf16, transpose_b, true, 0);
}

// Of gate and up and their activation in one op as of two ops, to the bit.
TEST_CASE("grouped_matmul: activated") {
  const auto check = [](const Groups& groups, Index inner, Index k, DType dtype, Index gap) {
    CAPTURE(groups.rows(), groups.count(), inner, k, name_of(dtype), gap);
    for_each_run([&](OpCase& t) {
      const Index rows = groups.rows();
      const Tensor a = t.normal({17, k}, dtype), b = t.normal({groups.count() * 2 * inner, k}, dtype);
      const Tensor offsets = t.values({groups.count() + 1}, DType::i32, groups.offsets());
      const Tensor rows_of = t.integers({rows}, DType::i32, 0, 17);
      const Tensor c = t.unset({rows, 2 * inner}, dtype, gap), y = t.unset({rows, inner}, dtype, gap);
      const Tensor c_alone = t.unset({rows, 2 * inner}, dtype), y_alone = t.unset({rows, inner}, dtype);
      GroupedMatmul op{.c = c, .a = a, .b = b, .offsets = offsets, .rows_of = rows_of, .transpose_b = true};
      op.activated = y;
      t.launch(op);
      op.c = c_alone;
      op.activated = {};
      t.launch(op);
      t.launch(SwiGluForward{.y = y_alone, .gate_up = c_alone});
      if (!t.compare()) return;
      const Doubles none(static_cast<std::size_t>(rows * 2 * inner), 0.0);
      t.expect("c", c, to_doubles(c_alone), none);
      t.expect("activated", y, to_doubles(y_alone), Doubles(static_cast<std::size_t>(rows * inner), 0.0));
    });
  };
  for (const DType dtype : {DType::f32, DType::bf16}) {
    check({{3, 0, 5, 1}}, 7, 9, dtype, 3);
    check({{150, 0, 7, 256}}, 136, 456, dtype, 8);
    check({{0, 300}}, 256, 72, dtype, 0);
    check({{0, 0}}, 8, 8, dtype, 0);
  }
}

TEST_CASE("grouped_gradient") {
  for (const DType dtype : {DType::f32, DType::bf16})
    for (const Write write : {Write::overwrite, Write::accumulate})
      for (const int gathers : {0, 1, 2}) {
        check_group_gradient({{3, 0, 5, 1}}, 7, 9, dtype, write, gathers);
        check_group_gradient({{0, 200, 0}}, 24, 40, dtype, write, gathers);
        check_group_gradient({{65, 1}}, 136, 144, dtype, write, gathers);
        check_group_gradient({{0}}, 8, 8, dtype, write, gathers);
      }
  for (const Write write : {Write::overwrite, Write::accumulate})
    for (const int gathers : {0, 1, 2}) {
      check_group_gradient({{430, 0, 3, 70}}, 152, 304, DType::bf16, write, gathers);
      check_group_gradient({{430, 0, 3, 70}}, 152, 304, DType::bf16, write, gathers, DType::bf16);
      check_group_gradient({{3, 0, 5, 1}}, 7, 9, DType::bf16, write, gathers, DType::bf16);
      check_group_gradient({{0, 200, 0}}, 24, 40, DType::bf16, write, gathers, DType::bf16);
    }
}

namespace {

void check_sum(Index rows, Index top, Index columns, DType dtype, bool weighted, bool started, Index gap) {
  CAPTURE(rows, top, columns, name_of(dtype), weighted, started, gap);
  for_each_run([&](OpCase& t) {
    const Tensor x = t.normal({rows * top, columns}, dtype), y = t.normal({rows, columns}, dtype, 1, gap);
    const Tensor weights = weighted ? t.normal({rows, top}, DType::f32) : Tensor{};
    Doubles order;
    for (Index c = 0; c < rows * top; ++c) order.push_back(static_cast<double>(rows * top - 1 - c));
    const Tensor place = t.values({rows, top}, DType::i32, order);
    const Doubles before = to_doubles(y);
    t.launch(ExpertSum{.y = y, .x = x, .place = place, .weights = weights, .start = started ? y : Tensor{}});
    if (!t.compare()) return;
    const Doubles v = to_doubles(x);
    Doubles expected, bound;
    for (Index r = 0; r < rows; ++r)
      for (Index c = 0; c < columns; ++c) {
        double sum = started ? before[static_cast<std::size_t>(r * columns + c)] : 0, size = std::fabs(sum);
        for (Index k = 0; k < top; ++k) {
          const Index at = rows * top - 1 - (r * top + k);
          const double term = v[static_cast<std::size_t>(at * columns + c)] *
                              (weighted ? static_cast<double>(weights.as<float>()[r * top + k]) : 1.0);
          sum += term;
          size += std::fabs(term);
        }
        expected.push_back(sum);
        bound.push_back(static_cast<double>(top + 1) * kUnit * size + 1.01 * unit_of(dtype) * std::fabs(sum));
      }
    t.expect("y", y, expected, bound);
  });
}

}  // namespace

TEST_CASE("expert_sum") {
  for (const DType dtype : {DType::f32, DType::bf16})
    for (const bool weighted : {false, true})
      for (const bool started : {false, true}) {
        check_sum(5, 3, 7, dtype, weighted, started, 2);
        check_sum(9, 2, 520, dtype, weighted, started, 8);
        check_sum(0, 2, 8, dtype, weighted, started, 0);
      }
}

TEST_CASE("expert_sum: choices without a place") {
  for (const DType dtype : {DType::f32, DType::bf16})
    for (const Index columns : {3, 264}) {
      CAPTURE(name_of(dtype), columns);
      for_each_run([&](OpCase& t) {
        // Rows of two, one and no place; what no place names is not a number.
        const Tensor x = t.values({4, columns}, dtype, [&] {
          Doubles v;
          for (Index p = 0; p < 4; ++p)
            for (Index c = 0; c < columns; ++c) v.push_back(p == 1 ? NAN : static_cast<double>(p + c % 3));
          return v;
        }());
        const Tensor place = t.values({3, 2}, DType::i32, {3, 0, -1, 2, -1, -1});
        const Tensor y = t.unset({3, columns}, dtype);
        t.launch(ExpertSum{.y = y, .x = x, .place = place});
        if (!t.compare()) return;
        Doubles expected;
        for (Index r = 0; r < 3; ++r)
          for (Index c = 0; c < columns; ++c) {
            const auto m = static_cast<double>(c % 3);
            expected.push_back(r == 0 ? 3 + 2 * m : r == 1 ? 2 + m : 0);
          }
        t.expect_equal("y", y, expected);
      });
    }
}

TEST_CASE("take_rows") {
  for (const DType dtype : {DType::f32, DType::bf16, DType::i32})
    for (const auto& [rows, columns, gap] : {std::array<Index, 3>{5, 7, 0}, {9, 520, 8}, {3, 6, 3}, {0, 4, 0}}) {
      CAPTURE(name_of(dtype), rows, columns, gap);
      for_each_run([&, rows = rows, columns = columns, gap = gap](OpCase& t) {
        const Tensor x = dtype == DType::i32 ? t.integers({11, columns}, dtype, -1000, 1000)
                                             : t.normal({11, columns}, dtype, 1, gap);
        const Tensor y = t.unset({rows, columns}, dtype, dtype == DType::i32 ? 0 : gap);
        const Tensor rows_of = t.integers({rows}, DType::i32, 0, 11);
        t.launch(TakeRows{.y = y, .x = x, .rows_of = rows_of});
        if (!t.compare()) return;
        const Doubles v = to_doubles(x);
        Doubles expected;
        for (Index p = 0; p < rows; ++p)
          for (Index c = 0; c < columns; ++c)
            expected.push_back(v[static_cast<std::size_t>(rows_of.as<std::int32_t>()[p] * columns + c)]);
        t.expect_equal("y", y, expected);
      });
    }
}

TEST_CASE("expert_activation_gradient") {
  for (const DType dtype : {DType::f32, DType::bf16})
    for (const auto& [rows, top, columns] : {std::array<Index, 3>{3, 2, 5}, {4, 3, 1024}, {0, 2, 8}}) {
      CAPTURE(rows, top, columns, name_of(dtype));
      for_each_run([&, rows = rows, top = top, columns = columns](OpCase& t) {
        const Index places = rows * top;
        const Tensor gate_up = t.normal({places, 2 * columns}, dtype), d = t.normal({places, columns}, dtype);
        const Tensor weights = t.normal({rows, top}, DType::f32), dweights = t.unset({rows, top}, DType::f32);
        Doubles order;
        for (Index p = 0; p < places; ++p) order.push_back(static_cast<double>(places - 1 - p));
        const Tensor choice_at = t.values({places}, DType::i32, order);
        const Doubles v = to_doubles(gate_up), e = to_doubles(d), w = to_doubles(weights);
        t.launch(ExpertActivationGradient{.dgate_up = gate_up,
                                          .weighted = d,
                                          .dweights = dweights,
                                          .d = d,
                                          .gate_up = gate_up,
                                          .weights = weights,
                                          .choice_at = choice_at});
        if (!t.compare()) return;
        const auto n = static_cast<std::size_t>(columns);
        Doubles dg(v.size()), dg_bound(v.size()), out(e.size()), out_bound(e.size()), dw(w.size()), dw_bound(w.size());
        for (std::size_t p = 0; p < static_cast<std::size_t>(places); ++p) {
          const std::size_t choice = static_cast<std::size_t>(places) - 1 - p;
          double size = 0;
          for (std::size_t c = 0; c < n; ++c) {
            const double g = v[p * 2 * n + c], u = v[p * 2 * n + n + c], y = e[p * n + c];
            const double s = 1 / (1 + std::exp(-g)), a = g * s * u, unit = 16 * kUnit * (1 + std::fabs(g));
            dw[choice] += y * a;
            size += std::fabs(y * a) * (1 + std::fabs(g));
            dg[p * 2 * n + c] = w[choice] * y * u * s * (1 + g * (1 - s));
            dg[p * 2 * n + n + c] = w[choice] * y * g * s;
            out[p * n + c] = w[choice] * a;
            dg_bound[p * 2 * n + c] = unit * std::fabs(w[choice] * y * u) * (1 + std::fabs(g)) +
                                      1.01 * unit_of(dtype) * std::fabs(dg[p * 2 * n + c]);
            dg_bound[p * 2 * n + n + c] = (unit + 1.01 * unit_of(dtype)) * std::fabs(dg[p * 2 * n + n + c]);
            out_bound[p * n + c] = (unit + 1.01 * unit_of(dtype)) * std::fabs(out[p * n + c]);
          }
          dw_bound[choice] = (16 + static_cast<double>(columns)) * kUnit * size;
        }
        t.expect("dgate_up", gate_up, dg, dg_bound);
        t.expect("weighted", d, out, out_bound);
        t.expect("dweights", dweights, dw, dw_bound);
      });
    }
}

namespace {

struct MlaSizes {
  Index rows, heads, nope, rope, value;
};

// Sine and cosine of the f32 product; the factor, two products and a sum lose 5 u more.
void check_heads(const MlaSizes& s, DType dtype, float factor, bool neighbours) {
  CAPTURE(s.rows, s.heads, s.nope, s.rope, s.value, name_of(dtype), factor, neighbours);
  const Index query = s.nope + s.rope, pairs = s.rope / 2;
  for_each_run([&](OpCase& t) {
    const Tensor q = t.normal({s.rows, s.heads, query}, dtype), k = t.unset({s.rows, s.heads, query}, dtype);
    const Tensor kv = t.normal({s.rows, s.heads, s.nope + s.value}, dtype, 1, 8);
    const Tensor shared = t.normal({s.rows, s.rope}, dtype, 1, 5);
    const Tensor positions = t.integers({s.rows}, DType::i32, 0, 100000);
    const Tensor frequencies =
        t.values({pairs}, DType::f32, generate(static_cast<std::size_t>(pairs), [&](std::size_t i) {
                   return std::pow(10000.0, -static_cast<double>(i) / static_cast<double>(pairs));
                 }));
    const Doubles q0 = to_doubles(q), kv0 = to_doubles(kv), shared0 = to_doubles(shared);
    t.launch(MlaHeads{.q = q,
                      .k = k,
                      .kv = kv,
                      .shared = shared,
                      .positions = positions,
                      .inverse_frequencies = frequencies,
                      .attention_factor = factor,
                      .neighbours = neighbours});
    // The gradient of the same shapes: q stands for dq, k for dk.
    const Tensor dq = t.normal({s.rows, s.heads, query}, dtype), dk = t.normal({s.rows, s.heads, query}, dtype);
    const Tensor dkv = t.normal({s.rows, s.heads, s.nope + s.value}, dtype),
                 dshared = t.unset({s.rows, s.rope}, dtype, 3);
    const Doubles dq0 = to_doubles(dq), dk0 = to_doubles(dk), dkv0 = to_doubles(dkv);
    t.launch(MlaHeadsGradient{.dq = dq,
                              .dkv = dkv,
                              .dshared = dshared,
                              .dk = dk,
                              .positions = positions,
                              .inverse_frequencies = frequencies,
                              .attention_factor = factor,
                              .neighbours = neighbours});
    if (!t.compare()) return;
    Doubles eq = q0, ek(q0.size()), edq = dq0, edkv = dkv0, eds(shared0.size(), 0.0);
    Doubles bq(eq.size(), 0.0), bk(ek.size(), 0.0), bdq(eq.size(), 0.0), bds(eds.size(), 0.0);
    const double u = unit_of(dtype) * 1.01;
    for (Index r = 0; r < s.rows; ++r)
      for (Index h = 0; h < s.heads; ++h) {
        const auto at = [&](Index i) { return static_cast<std::size_t>((r * s.heads + h) * query + i); };
        const auto kv_at = [&](Index i) {
          return static_cast<std::size_t>((r * s.heads + h) * (s.nope + s.value) + i);
        };
        for (Index i = 0; i < s.nope; ++i) {
          ek[at(i)] = kv0[kv_at(i)];
          edkv[kv_at(i)] = dk0[at(i)];
        }
        for (Index i = 0; i < pairs; ++i) {
          const float angle = static_cast<float>(positions.as<std::int32_t>()[r]) * frequencies.as<float>()[i];
          const double c = std::cos(static_cast<double>(angle)) * static_cast<double>(factor),
                       n = std::sin(static_cast<double>(angle)) * static_cast<double>(factor);
          const Index low = neighbours ? 2 * i : i, high = neighbours ? low + 1 : i + pairs;
          const std::size_t x = at(s.nope + low), y = at(s.nope + high);
          const auto sx = static_cast<std::size_t>(r * s.rope + low), sy = sx + static_cast<std::size_t>(high - low);
          const auto turn = [&](double a, double b, double sine, double& first, double& second, double& error) {
            first = a * c - b * sine;
            second = b * c + a * sine;
            error = 8 * kUnit * (std::fabs(a) + std::fabs(b)) * static_cast<double>(factor);
          };
          double error = 0;
          turn(q0[x], q0[y], n, eq[x], eq[y], error);
          bq[x] = error + u * std::fabs(eq[x]), bq[y] = error + u * std::fabs(eq[y]);
          turn(shared0[sx], shared0[sy], n, ek[x], ek[y], error);
          bk[x] = error + u * std::fabs(ek[x]), bk[y] = error + u * std::fabs(ek[y]);
          turn(dq0[x], dq0[y], -n, edq[x], edq[y], error);
          bdq[x] = error + u * std::fabs(edq[x]), bdq[y] = error + u * std::fabs(edq[y]);
          double first = 0, second = 0;
          turn(dk0[x], dk0[y], -n, first, second, error);
          eds[sx] += first;
          eds[sy] += second;
          bds[sx] += error * static_cast<double>(s.heads);
          bds[sy] += error * static_cast<double>(s.heads);
        }
      }
    for (std::size_t i = 0; i < eds.size(); ++i) bds[i] += u * std::fabs(eds[i]);
    t.expect("q", q, eq, bq);
    t.expect("k", k, ek, bk);
    t.expect("dq", dq, edq, bdq);
    t.expect_equal("dkv", dkv, edkv);
    t.expect("dshared", dshared, eds, bds);
  });
}

}  // namespace

TEST_CASE("mla_heads and its gradient") {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    for (const bool neighbours : {true, false}) {
      check_heads({5, 3, 6, 4, 5}, dtype, 1, neighbours);
      check_heads({3, 2, 128, 64, 128}, dtype, 1.25f, neighbours);
      check_heads({2, 1, 1, 2, 1}, dtype, 1, neighbours);
      check_heads({2, 1, 4, 300, 3}, dtype, 1, neighbours);
      check_heads({0, 2, 4, 2, 4}, dtype, 1, neighbours);
    }
  }
}

TEST_CASE("grouped_matmul: what it rejects") {
  OpCase t(1, true);
  const Tensor a = t.normal({4, 3}, DType::f32), b = t.normal({6, 3}, DType::f32), c = t.unset({4, 2}, DType::f32),
               offsets = t.values({3}, DType::i32, {0, 2, 4});
  check_rejects([&] { t.launch(GroupedMatmul{.c = c, .a = a, .b = b, .offsets = offsets, .transpose_b = true}); },
                "grouped_matmul: b");
  const Tensor y = t.unset({4, 1}, DType::f32), rows_b = t.normal({4, 3}, DType::f32),
               plain_b = t.normal({6, 2}, DType::f32);
  GroupedMatmul op{.c = c, .a = a, .b = rows_b, .offsets = offsets, .transpose_b = true, .activated = c};
  check_rejects([&] { t.launch(op); }, "grouped_matmul: activated");
  op.activated = y;
  op.b = plain_b;
  op.transpose_b = false;
  check_rejects([&] { t.launch(op); }, "not transposed");
}
