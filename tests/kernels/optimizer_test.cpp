// SquaredNorm, UpdateScalars, AdamW, split masters, FiniteCheck and Checksum.
#include <cmath>
#include <cstring>

#include "kernels/adamw.h"
#include "kernels/checksum.h"
#include "kernels/finite.h"
#include "kernels/gradient_norm.h"
#include "kernels/split_master.h"
#include "tests/kernels/op_case.h"

using namespace dstrain;
using namespace dstrain::test;

TEST_CASE("squared_norm adds to its result in float64") {
  for (const Index n : {0, 1, 3, 7, 15, 17, 65, 127, 65536, 200003}) {
    for (const DType dtype : {DType::f32, DType::bf16})
      for_each_run([&](OpCase& t) {
        CAPTURE(n, name_of(dtype));
        const Tensor x = t.normal({n}, dtype), result = t.values({1}, DType::f64, {0.5});
        t.launch(SquaredNorm{.result = result, .x = x});
        if (!t.compare()) return;
        long double sum = 0.5L;
        for (const double v : to_doubles(x)) sum += static_cast<long double>(v) * v;
        t.expect("result", result, {static_cast<double>(sum)},
                 {static_cast<double>(n + 2) * 0x1p-53 * static_cast<double>(sum)});
      });
  }
  OpCase t(1, true);
  check_rejects([&] { t.launch(SquaredNorm{.result = t.unset({1}, DType::f32), .x = t.normal({3}, DType::f32)}); },
                "squared_norm: result is f32, expected f64");
}

TEST_CASE("update_scalars: torch's clipping, bias corrections, and what is not finite") {
  struct Case {
    double squared, loss;
    float max_norm;
    bool halt;
    Index updates, halted;  // before
    double clip;            // NaN: none
    Index updates_after, halted_after;
    double bad = 0, most_squared = INFINITY, most_loss = INFINITY;
    bool halt_beyond = false;
  };
  const double nan = std::nan(""), infinity = INFINITY;
  for (const Case& c :
       {Case{16, 3, 1, false, 0, 0, 1 / (4 + 1e-6), 1, 0}, Case{0.25, 3, 1, true, 6, 0, 1, 7, 0},
        Case{16, 3, 0, false, 999, 0, 1, 1000, 0}, Case{infinity, 3, 1, false, 4, 0, nan, 4, 0},
        Case{nan, 3, 0, true, 4, 0, nan, 4, 1}, Case{16, nan, 1, true, 4, 0, nan, 4, 1},
        Case{16, 3, 1, true, 4, 1, nan, 4, 1},
        // A gradient of 1e38, whose square float32 moments cannot hold; a bad weight.
        Case{1e38, 3, 1, true, 4, 0, nan, 4, 1}, Case{-infinity, 3, 1, true, 4, 0, nan, 4, 1},
        Case{16, 1e38, 1, true, 4, 0, nan, 4, 1}, Case{1e76, 3, 1, true, 4, 0, nan, 4, 1},
        Case{16, 3, 1, false, 4, 0, nan, 4, 0, 1}, Case{16, 3, 1, true, 4, 0, nan, 4, 1, 2, 1, 1},
        // Limits: at one, beyond one, and what is not finite is no spike.
        Case{16, 3, 0, true, 4, 0, 1, 5, 0, 0, 16, 3}, Case{16, 3, 0, true, 4, 0, nan, 4, 0, 0, 15.9, 3},
        Case{16, 3, 0, false, 4, 0, nan, 4, 1, 0, 16, 2.9, true},
        Case{nan, 3, 0, false, 4, 0, nan, 4, 0, 0, 16, 3, true}}) {
    CAPTURE(c.squared, c.loss, c.max_norm, c.halt, c.updates, c.halted, c.bad, c.most_squared, c.most_loss);
    for_each_run([&](OpCase& t) {
      const Tensor scalars = t.values({4}, DType::f32, {7, 7, 7, 7});
      const Tensor state = t.values({2}, DType::i64, {static_cast<double>(c.updates), static_cast<double>(c.halted)});
      t.launch(UpdateScalars{.scalars = scalars,
                             .state = state,
                             .squared_norm = t.values({1}, DType::f64, {c.squared}),
                             .loss = t.values({1}, DType::f64, {c.loss}),
                             .bad = t.values({1}, DType::f64, {c.bad}),
                             .limits = t.values({2}, DType::f64, {c.most_squared, c.most_loss}),
                             .max_norm = c.max_norm,
                             .beta1 = 0.9,
                             .beta2 = 0.95,
                             .halt = c.halt,
                             .halt_beyond = c.halt_beyond});
      if (!t.compare()) return;
      t.expect_equal("state", state, {static_cast<double>(c.updates_after), static_cast<double>(c.halted_after)});
      const Doubles found = to_doubles(scalars);
      CHECK(found[0] == 7);
      if (std::isnan(c.clip)) {
        CHECK(std::isnan(found[1]));
        return;
      }
      const auto n = static_cast<double>(c.updates_after);
      t.expect("scalars", scalars, {7, c.clip, 1 - std::pow(0.9, n), 1 - std::pow(0.95, n)}, {0, kUnit, kUnit, kUnit});
    });
  }
  OpCase t(1, true);
  check_rejects(
      [&] {
        t.launch(UpdateScalars{.scalars = t.unset({4}, DType::f32),
                               .state = t.unset({2}, DType::i64),
                               .squared_norm = t.unset({1}, DType::f64),
                               .loss = t.unset({1}, DType::f64),
                               .bad = t.unset({1}, DType::f64),
                               .limits = t.unset({2}, DType::f64),
                               .max_norm = -1});
      },
      "update_scalars: max_norm -1");
}

TEST_CASE("a split master is exact, and its bfloat16 is rounded half away from zero") {
  for_each_run([&](OpCase& t) {
    const Index n = 70001;
    const Tensor master = t.normal({n}, DType::f32), back = t.unset({n}, DType::f32);
    const Tensor hi = t.unset({n}, DType::bf16), low = t.unset({n}, DType::u16);
    t.launch(SplitMaster{.hi = hi, .low = low, .master = master});
    t.launch(JoinMaster{.master = back, .hi = hi, .low = low});
    // 1 + 2^-8 lies half-way between 1 and 1 + 2^-7.
    const Tensor ties = t.values({4}, DType::f32, {1 + 0x1p-8, -1 - 0x1p-8, 0, 3});
    const Tensor tie_hi = t.unset({4}, DType::bf16), tie_low = t.unset({4}, DType::u16);
    t.launch(SplitMaster{.hi = tie_hi, .low = tie_low, .master = ties});
    if (!t.compare()) return;
    t.expect_equal("joined", back, to_doubles(master));
    // Half a unit in the last of eight places.
    const Doubles exact = to_doubles(master);
    t.expect("bfloat16", hi, exact, generate(exact.size(), [&](std::size_t i) { return std::abs(exact[i]) * 0x1p-8; }));
    t.expect_equal("ties", tie_hi, {1 + 0x1p-7, -1 - 0x1p-7, 0, 3});
  });
}

TEST_CASE("finite_check sees one bad value, and none in a gap") {
  for (const DType dtype : {DType::f32, DType::bf16})
    for (const double bad : {0.0, static_cast<double>(INFINITY), -static_cast<double>(INFINITY), std::nan("")})
      for_each_run([&](OpCase& t) {
        Doubles values(3 * 1001, 1.0);
        values[2500] = bad;
        const Tensor x = t.values({3, 1001}, dtype, values), flag = t.values({1}, DType::i32, {0});
        t.launch(FiniteCheck{.flag = flag, .x = x});
        if (t.compare()) t.expect_equal("flag", flag, {bad == 0 ? 0.0 : 1.0});
        const Tensor gapped = t.normal({5, 33}, dtype, 1, 7), set = t.values({1}, DType::i32, {1});
        t.launch(FiniteCheck{.flag = set, .x = gapped});
        if (t.compare()) t.expect_equal("left", set, {1});
        const Tensor wide = t.values({1}, DType::f64, {0});
        t.launch(FiniteCheck{.flag = wide, .x = x, .most = 1});
        if (t.compare()) t.expect_equal("wide flag", wide, {bad == 0 ? 0.0 : 1.0});
        t.launch(FiniteCheck{.flag = wide, .x = x, .most = 0.5});
        if (t.compare()) t.expect_equal("beyond", wide, {1});
      });
}

TEST_CASE("checksum: the sum by its definition, and every flipped bit changes it") {
  for (const DType dtype : {DType::f32, DType::bf16, DType::u16}) {
    for (const Index n : {0, 1, 63, 70001})
      for_each_run([&](OpCase& t) {
        const Tensor x = t.unset({n}, dtype), result = t.values({1}, DType::i64, {3});
        const std::size_t size = size_of(dtype);
        for (std::size_t i = 0; i < x.bytes(); ++i) x.data[i] = static_cast<std::byte>(i * 37 + i / 251);
        t.launch(Checksum{.result = result, .x = x});
        const auto sum_of = [&] {
          std::uint64_t sum = 3;
          for (Index i = 0; i < n; ++i) {
            std::uint64_t word = 0;
            std::memcpy(&word, x.data + static_cast<std::size_t>(i) * size, size);
            sum += word * checksum_factor(static_cast<std::uint64_t>(i));
          }
          return static_cast<std::int64_t>(sum);
        };
        const std::int64_t expected = sum_of();
        CHECK(*reinterpret_cast<const std::int64_t*>(result.data) == expected);
        for (std::size_t bit = 0; bit < 8 * x.bytes(); bit += 8 * x.bytes() / 97 + 1) {
          const auto mask = static_cast<std::byte>(1 << bit % 8);
          x.data[bit / 8] ^= mask;
          const Tensor other = t.values({1}, DType::i64, {3});
          t.launch(Checksum{.result = other, .x = x});
          CHECK(*reinterpret_cast<const std::int64_t*>(other.data) != expected);
          x.data[bit / 8] ^= mask;
        }
      });
  }
}

namespace {

struct State {
  Tensor master, exp_avg, exp_avg_sq, gradient, compute, scalars;
};
State make_state(OpCase& t, Index n, bool half, double clip, DType gradient = DType::f32) {
  const Tensor square = t.normal({n}, DType::f32, 0.1);
  for (Index i = 0; i < n; ++i) square.as<float>()[i] = std::abs(square.as<float>()[i]);
  return {t.normal({n}, DType::f32),
          t.normal({n}, DType::f32, 0.1),
          square,
          t.normal({n}, gradient),
          half ? t.unset({n}, DType::bf16) : Tensor{},
          t.values({4}, DType::f32, {3e-3, clip, 1 - std::pow(0.9, 3), 1 - std::pow(0.95, 3)})};
}
AdamW update(const State& s) {
  return {.master = s.master,
          .exp_avg = s.exp_avg,
          .exp_avg_sq = s.exp_avg_sq,
          .gradient = s.gradient,
          .compute = s.compute,
          .scalars = s.scalars,
          .beta1 = 0.9f,
          .beta2 = 0.95f,
          .eps = 1e-8f,
          .weight_decay = 0.1f};
}

}  // namespace

// Every step is a handful of f32 roundings of its terms: 8 u of each term's size.
TEST_CASE("adamw: one step in double") {
  for (const Index n : {0, 1, 3, 7, 65, 127, 129, 40001}) {
    for (const auto& [half, gradient] :
         {std::pair{false, DType::f32}, {true, DType::f32}, {true, DType::bf16}, {false, DType::bf16}}) {
      CAPTURE(n, half, name_of(gradient));
      for_each_run([&, half = half, gradient = gradient](OpCase& t) {
        const State s = make_state(t, n, half, 0.5, gradient);
        const Doubles p = to_doubles(s.master), m = to_doubles(s.exp_avg), v = to_doubles(s.exp_avg_sq),
                      g = to_doubles(s.gradient);
        const Doubles k = to_doubles(s.scalars);
        t.launch(update(s));
        if (!t.compare()) return;
        const double beta1 = static_cast<double>(0.9f), beta2 = static_cast<double>(0.95f),
                     decay = static_cast<double>(0.1f);
        Doubles new_p(p.size()), new_m(p.size()), new_v(p.size()), bound_p(p.size()), bound_m(p.size()),
            bound_v(p.size());
        for (std::size_t i = 0; i < p.size(); ++i) {
          const double gi = k[1] * g[i];
          new_m[i] = m[i] + (1 - beta1) * (gi - m[i]);
          new_v[i] = beta2 * v[i] + (1 - beta2) * gi * gi;
          const double denominator = std::sqrt(new_v[i]) / std::sqrt(k[3]) + static_cast<double>(1e-8f);
          const double step = k[0] / k[2] * new_m[i] / denominator;
          new_p[i] = p[i] * (1 - k[0] * decay) - step;
          bound_m[i] = 8 * kUnit * (std::abs(m[i]) + std::abs(gi));
          bound_v[i] = 8 * kUnit * new_v[i];
          bound_p[i] =
              4 * kUnit * std::abs(p[i]) + 16 * kUnit * std::abs(step) + k[0] / k[2] * bound_m[i] / denominator;
        }
        t.expect("exp_avg", s.exp_avg, new_m, bound_m);
        t.expect("exp_avg_sq", s.exp_avg_sq, new_v, bound_v);
        t.expect("master", s.master, new_p, bound_p);
        if (!half) return;
        const Doubles stored = to_doubles(s.master);
        t.expect("compute", s.compute, stored,
                 generate(stored.size(), [&](std::size_t i) { return 0x1p-8 * std::abs(stored[i]); }));
      });
    }
  }
}

// Scalars, moments and parameter of torch.optim.AdamW's documented recurrence, worked by hand in double:
// p = 1, g = 0.5, lr = 0.1, betas (0.9, 0.95), eps 1e-8, weight_decay 0.1, t = 1: m / bc1 = 0.5, sqrt(v / bc2) = 0.5.
TEST_CASE("adamw: the first step by hand") {
  OpCase t(1, true);
  const auto one = [&](double v) { return t.values({1}, DType::f32, {v}); };
  const State s{one(1), one(0), one(0), one(0.5), {}, t.values({4}, DType::f32, {0.1, 1, 0.1, 0.05})};
  t.launch(update(s));
  t.expect("master", s.master, {1 * (1 - 0.1 * 0.1) - 0.1 * 0.5 / (0.5 + 1e-8)}, {16 * kUnit});
  t.expect("exp_avg", s.exp_avg, {0.05}, {8 * kUnit * 0.05});
  t.expect("exp_avg_sq", s.exp_avg_sq, {0.0125}, {16 * kUnit * 0.0125});
}

// The same weights as the update of a float32 master, whose bits the two halves keep.
TEST_CASE("adamw: a split master is updated as the float32 one") {
  for (const Index n : {1, 3, 127, 40001})
    for (const DType gradient : {DType::f32, DType::bf16})
      for_each_run([&](OpCase& t) {
        const State s = make_state(t, n, false, 0.5, gradient);
        const auto copy = [&](const Tensor& x) { return t.values({n}, DType::f32, to_doubles(x)); };
        AdamW split = update(s);
        split.master = {};
        split.exp_avg = copy(s.exp_avg), split.exp_avg_sq = copy(s.exp_avg_sq);
        split.compute = t.unset({n}, DType::bf16), split.low = t.unset({n}, DType::u16);
        t.launch(SplitMaster{.hi = split.compute, .low = split.low, .master = s.master});
        t.launch(update(s));
        t.launch(split);
        const Tensor joined = t.unset({n}, DType::f32);
        t.launch(JoinMaster{.master = joined, .hi = split.compute, .low = split.low});
        if (!t.compare()) return;
        t.expect_equal("master", joined, to_doubles(s.master));
        t.expect_equal("exp_avg", split.exp_avg, to_doubles(s.exp_avg));
        t.expect_equal("exp_avg_sq", split.exp_avg_sq, to_doubles(s.exp_avg_sq));
      });
}

TEST_CASE("adamw: shards have the bits of the whole; a bad clip coefficient changes nothing") {
  for (const std::string& name : devices()) {
    const Device device = name == "cuda" ? Device::cuda : Device::cpu;
    CAPTURE(name);
    OpCase t(2, true, device), again(1, true, device);
    const State whole = make_state(t, 20011, true, 0.5), parts = make_state(again, 20011, true, 0.5);
    t.launch(update(whole));
    for (const auto& [begin, end] : {std::pair<Index, Index>{0, 1}, {1, 6}, {6, 5003}, {5003, 20011}}) {
      AdamW part = update(parts);
      for (Tensor* x : {&part.master, &part.exp_avg, &part.exp_avg_sq, &part.gradient, &part.compute})
        *x = x->slice(0, begin, end);
      again.launch(part);
    }
    CHECK(t.bits() == again.bits());
    for (const double bad : {static_cast<double>(NAN), static_cast<double>(INFINITY)}) {
      OpCase before(1, true, device), after(1, true, device);
      make_state(before, 100, true, bad);
      after.launch(update(make_state(after, 100, true, bad)));
      CHECK(before.bits() == after.bits());
    }
  }
  OpCase t(2, true);
  const State whole = make_state(t, 20011, true, 0.5);
  AdamW wrong = update(whole);
  wrong.gradient = whole.gradient.slice(0, 0, 5);
  check_rejects([&] { t.launch(wrong); }, "adamw: gradient has shape (5), expected (20011)");
}
