#include "kernels/router.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <numeric>
#include <random>

#include "tests/kernels/op_case.h"

using namespace dstrain;
using namespace dstrain::test;

namespace {

// Indices of the best `top` of the values, as a full sort of them says: larger first, then the lower index.
std::vector<Index> best_of(const std::vector<float>& values, Index top) {
  std::vector<Index> order(values.size());
  std::iota(order.begin(), order.end(), Index{0});
  std::stable_sort(order.begin(), order.end(), [&](Index a, Index b) {
    return values[static_cast<std::size_t>(a)] > values[static_cast<std::size_t>(b)];
  });
  order.resize(static_cast<std::size_t>(top));
  return order;
}

// The experts that a row's float32 scores choose, in ascending order. Sums of a group's best are float32 sums.
std::vector<Index> chosen(const float* scores, const float* bias, Index all, Index top, const RouterRule& rule) {
  std::vector<float> values(static_cast<std::size_t>(all));
  for (Index e = 0; e < all; ++e) values[static_cast<std::size_t>(e)] = scores[e] + (bias ? bias[e] : 0.0f);
  const Index size = all / rule.groups;
  if (rule.top_groups < rule.groups) {
    std::vector<float> groups;
    for (Index g = 0; g < rule.groups; ++g) {
      std::vector<float> part(values.begin() + g * size, values.begin() + (g + 1) * size);
      std::sort(part.rbegin(), part.rend());
      groups.push_back(std::accumulate(part.begin(), part.begin() + std::min(size, rule.group_best), 0.0f));
    }
    const std::vector<Index> kept = best_of(groups, rule.top_groups);
    for (Index e = 0; e < all; ++e)
      if (std::find(kept.begin(), kept.end(), e / size) == kept.end()) values[static_cast<std::size_t>(e)] = -INFINITY;
  }
  std::vector<Index> result = best_of(values, top);
  std::sort(result.begin(), result.end());
  return result;
}

void check_route(Index rows, Index all, Index top, const RouterRule& rule, bool biased, bool ties) {
  CAPTURE(rows, all, top, static_cast<int>(rule.scoring), rule.groups, rule.top_groups, biased, ties);
  for_each_run([&](OpCase& t) {
    // Ties: logits are few different numbers. The bias is below -1, so that masked groups at 0 would win.
    const Tensor logits = ties ? t.integers({rows, all}, DType::i32, 0, 3) : t.normal({rows, all}, DType::f32, 2);
    if (ties)
      for (Index i = 0; i < rows * all; ++i)
        reinterpret_cast<float*>(logits.data)[i] = static_cast<float>(reinterpret_cast<std::int32_t*>(logits.data)[i]);
    const Tensor input(logits.data, DType::f32, logits.device, {rows, all});
    Tensor bias = biased ? t.normal({all}, DType::f32, 0.3) : Tensor{};
    if (biased)
      for (Index e = 0; e < all; ++e) bias.as<float>()[e] = ties ? -1.5f : bias.as<float>()[e] - 1.2f;
    const Tensor scores = t.unset({rows, all}, DType::f32), experts = t.unset({rows, top}, DType::i32),
                 weights = t.unset({rows, top}, DType::f32);
    t.launch(
        Route{.scores = scores, .experts = experts, .weights = weights, .logits = input, .bias = bias, .rule = rule});
    if (!t.compare()) return;
    const Doubles x = to_doubles(input);
    Doubles expected(x.size()), bound(x.size()), w, w_bound;
    for (Index r = 0; r < rows; ++r) {
      const auto at = [&](Index e) { return static_cast<std::size_t>(r * all + e); };
      double sum = 0;
      for (Index e = 0; e < all; ++e) sum += std::exp(x[at(e)]);
      for (Index e = 0; e < all; ++e) {
        const double v = x[at(e)];
        expected[at(e)] = rule.scoring == RouterScores::sigmoid ? 1 / (1 + std::exp(-v)) : std::exp(v) / sum;
        bound[at(e)] = (8 + static_cast<double>(all)) * kUnit * (1 + std::fabs(v)) * expected[at(e)];
      }
      // From the scores that the op gave, decisions are exact.
      const std::vector<Index> list =
          chosen(scores.as<float>() + r * all, biased ? bias.as<float>() : nullptr, all, top, rule);
      double total = 0;
      for (const Index e : list) total += static_cast<double>(scores.as<float>()[at(e)]);
      for (Index k = 0; k < top; ++k) {
        const Index e = list[static_cast<std::size_t>(k)];
        CHECK(experts.as<std::int32_t>()[r * top + k] == e);
        const double s = scores.as<float>()[at(e)];
        w.push_back((rule.normalize ? s / total : s) * static_cast<double>(rule.scale));
        w_bound.push_back((4 + static_cast<double>(top)) * kUnit * w.back());
      }
    }
    t.expect("scores", scores, expected, bound);
    t.expect("weights", weights, w, w_bound);
  });
}

const RouterRule kV3{.groups = 4, .top_groups = 2, .scale = 2.5f};
const RouterRule kV2{.scoring = RouterScores::softmax, .normalize = false};
const RouterRule kV2Grouped{
    .scoring = RouterScores::softmax, .groups = 4, .top_groups = 3, .group_best = 1, .normalize = false, .scale = 16};

}  // namespace

TEST_CASE("route") {
  for (const bool ties : {false, true}) {
    check_route(33, 8, 2, kV3, true, ties);
    check_route(7, 256, 8, {.groups = 8, .top_groups = 4, .scale = 2.5f}, true, ties);
    check_route(5, 64, 6, kV2, false, ties);
    check_route(9, 160, 6, kV2Grouped, false, ties);
    check_route(3, 1024, 1, {.groups = 1, .top_groups = 1}, true, ties);
    check_route(4, 5, 5, kV2, false, ties);
    check_route(3, 12, 3, {.groups = 4, .top_groups = 1, .normalize = false}, true, ties);
  }
  check_route(0, 8, 2, kV3, true, false);
}

TEST_CASE("route: numbers that are none lose, and indices stay in range") {
  for_each_run([](OpCase& t) {
    const Tensor logits = t.values({2, 4}, DType::f32, {NAN, 1, NAN, 0, NAN, NAN, NAN, NAN});
    const Tensor scores = t.unset({2, 4}, DType::f32), experts = t.unset({2, 2}, DType::i32),
                 weights = t.unset({2, 2}, DType::f32);
    t.launch(Route{.scores = scores, .experts = experts, .weights = weights, .logits = logits, .rule = {}});
    if (t.compare()) t.expect_equal("experts", experts, {1, 3, 0, 1});
  });
}

namespace {

void check_gradient(const RouterRule& rule, bool balanced) {
  CAPTURE(static_cast<int>(rule.scoring), rule.normalize, balanced);
  constexpr Index kRows = 6, kAll = 8, kTop = 3;
  constexpr float kCoefficient = 0.25f;
  for_each_run([&](OpCase& t) {
    const Tensor logits = t.normal({kRows, kAll}, DType::f32), dweights = t.normal({kRows, kTop}, DType::f32);
    const Tensor scores = t.unset({kRows, kAll}, DType::f32), experts = t.unset({kRows, kTop}, DType::i32),
                 weights = t.unset({kRows, kTop}, DType::f32), dlogits = t.unset({kRows, kAll}, DType::f32);
    const Tensor f = t.normal({2, kAll}, DType::f32);
    t.launch(Route{.scores = scores, .experts = experts, .weights = weights, .logits = logits, .rule = rule});
    RouteGradient op{.dlogits = dlogits, .dweights = dweights, .scores = scores, .experts = experts, .rule = rule};
    if (balanced) {
      op.balance = f;
      op.coefficient = kCoefficient;
    }
    t.launch(op);
    if (!t.compare()) return;
    const Doubles d = to_doubles(dweights), fs = to_doubles(f);
    // The loss as a function of the logits, the experts staying those chosen.
    const auto loss = [&](const Doubles& x) {
      Doubles parts(x.size(), 0.0);
      for (std::size_t r = 0; r < kRows; ++r) {
        double s[kAll], all = 0, of_chosen = 0, spread = 0;
        for (std::size_t e = 0; e < kAll; ++e) all += s[e] = std::exp(x[r * kAll + e]);
        for (std::size_t e = 0; e < kAll; ++e)
          s[e] = rule.scoring == RouterScores::sigmoid ? 1 / (1 + std::exp(-x[r * kAll + e])) : s[e] / all;
        for (std::size_t e = 0; e < kAll; ++e) spread += s[e];
        const auto expert = [&](std::size_t k) {
          return static_cast<std::size_t>(experts.as<std::int32_t>()[r * kTop + k]);
        };
        for (std::size_t k = 0; k < kTop; ++k) of_chosen += s[expert(k)];
        for (std::size_t k = 0; k < kTop; ++k)
          parts[r * kAll] += d[r * kTop + k] * (rule.normalize ? s[expert(k)] / of_chosen : s[expert(k)]) *
                             static_cast<double>(rule.scale);
        for (std::size_t e = 0; e < kAll && balanced; ++e)
          parts[r * kAll] += static_cast<double>(kCoefficient) * fs[r / 3 * kAll + e] * s[e] / spread;
      }
      return parts;
    };
    const Doubles expected = central_differences(loss, to_doubles(logits), Doubles(logits.numel(), 1.0));
    t.expect("dlogits", dlogits, expected, Doubles(expected.size(), 64 * kUnit * 8 * 2.5 + 20 * kDifference));
  });
}

}  // namespace

TEST_CASE("route_gradient") {
  for (const bool balanced : {false, true}) {
    check_gradient({.scale = 2.5f}, balanced);
    check_gradient({.normalize = false}, balanced);
    check_gradient(kV2, balanced);
  }
}

TEST_CASE("expert_order and expert_counts") {
  for (const auto& [rows, top, all] :
       {std::array<Index, 3>{1, 1, 1}, {700, 3, 7}, {2000, 2, 300}, {5, 2, 1024}, {0, 2, 4}}) {
    CAPTURE(rows, top, all);
    for_each_run([&, rows = rows, top = top, all = all](OpCase& t) {
      // The last expert has no token.
      const Tensor experts = t.integers({rows, top}, DType::i32, 0, std::max<Index>(1, all - 1));
      const Tensor offsets = t.unset({all + 1}, DType::i32), place = t.unset({rows, top}, DType::i32),
                   choice_at = t.unset({rows * top}, DType::i32), row_at = t.unset({rows * top}, DType::i32),
                   counts = t.normal({all}, DType::f32);
      const Doubles before = to_doubles(counts);
      t.launch(ExpertOrder{
          .offsets = offsets, .place = place, .choice_at = choice_at, .row_at = row_at, .experts = experts});
      t.launch(ExpertCounts{.counts = counts, .offsets = offsets});
      const Tensor sums = t.values({all}, DType::f32, Doubles(static_cast<std::size_t>(all), 5.0));
      t.launch(ExpertCounts{.counts = sums, .offsets = offsets, .write = Write::accumulate});
      if (!t.compare()) return;
      std::vector<std::vector<double>> lists(static_cast<std::size_t>(all));
      for (Index c = 0; c < rows * top; ++c)
        lists[static_cast<std::size_t>(experts.as<std::int32_t>()[c])].push_back(static_cast<double>(c));
      Doubles order, rows_of, starts{0}, sizes, added, places(static_cast<std::size_t>(rows * top));
      for (const auto& list : lists) {
        for (const double c : list) {
          places[static_cast<std::size_t>(c)] = static_cast<double>(order.size());
          order.push_back(c);
          rows_of.push_back(std::floor(c / static_cast<double>(top)));
        }
        starts.push_back(static_cast<double>(order.size()));
        sizes.push_back(static_cast<double>(list.size()));
        added.push_back(5.0 + static_cast<double>(list.size()));
      }
      t.expect_equal("offsets", offsets, starts);
      t.expect_equal("choice_at", choice_at, order);
      t.expect_equal("row_at", row_at, rows_of);
      t.expect_equal("place", place, places);
      t.expect_equal("counts", counts, sizes);
      t.expect_equal("sums", sums, added);
    });
  }
}

TEST_CASE("expert_order: choices of a part of the experts, rows of groups of them") {
  for (const auto& [rows, top, all, width] :
       {std::array<Index, 4>{1, 1, 4, 2}, {700, 3, 12, 4}, {2100, 6, 64, 8}, {0, 2, 4, 1}})
    for (const bool distinct : {false, true}) {
      // Groups of a part of the experts, or the groups of all.
      const Index groups = distinct ? all / width : 2, first = distinct ? 0 : all / 2 - width;
      CAPTURE(rows, top, all, width, distinct);
      for_each_run([&, rows = rows, top = top, all = all, width = width](OpCase& t) {
        Doubles chosen;  // ascending in a row
        std::mt19937 random(3);
        std::vector<double> everyone(static_cast<std::size_t>(all));
        std::iota(everyone.begin(), everyone.end(), 0.0);
        for (Index r = 0; r < rows; ++r)
          std::sample(everyone.begin(), everyone.end(), std::back_inserter(chosen), top, random);
        std::vector<std::vector<double>> lists(static_cast<std::size_t>(groups));
        for (Index c = 0; c < rows * top; ++c) {
          const auto group_of = [&](Index at) {
            const double g = std::floor((chosen[static_cast<std::size_t>(at)] - static_cast<double>(first)) /
                                        static_cast<double>(width));
            return g < 0 || g >= static_cast<double>(groups) ? -1 : static_cast<int>(g);
          };
          const int g = group_of(c);
          if (g < 0 || (distinct && c % top > 0 && group_of(c - 1) == g)) continue;
          lists[static_cast<std::size_t>(g)].push_back(static_cast<double>(c));
        }
        Doubles order, rows_of, starts{0}, places(static_cast<std::size_t>(rows * top), -1.0);
        for (const auto& list : lists) {
          for (const double c : list) {
            places[static_cast<std::size_t>(c)] = static_cast<double>(order.size());
            order.push_back(c);
            rows_of.push_back(std::floor(c / static_cast<double>(top)));
          }
          starts.push_back(static_cast<double>(order.size()));
        }
        const auto count = static_cast<Index>(order.size());
        const Tensor experts = t.values({rows, top}, DType::i32, chosen);
        const Tensor offsets = t.unset({groups + 1}, DType::i32), place = t.unset({rows, top}, DType::i32),
                     choice_at = t.unset({count}, DType::i32), row_at = t.unset({count}, DType::i32);
        t.launch(ExpertOrder{.offsets = offsets,
                             .place = place,
                             .choice_at = choice_at,
                             .row_at = row_at,
                             .experts = experts,
                             .first = first,
                             .width = width,
                             .distinct = distinct});
        if (!t.compare()) return;
        t.expect_equal("offsets", offsets, starts);
        t.expect_equal("choice_at", choice_at, order);
        t.expect_equal("row_at", row_at, rows_of);
        t.expect_equal("place", place, places);
      });
    }
}

TEST_CASE("sequence_load") {
  for_each_run([](OpCase& t) {
    constexpr Index kSequences = 3, kLength = 11, kAll = 10, kTop = 4;
    const Tensor scores = t.normal({kSequences * kLength, kAll}, DType::f32),
                 load = t.unset({kSequences, kAll}, DType::f32);
    t.launch(SequenceLoad{.load = load, .scores = scores, .top = kTop});
    if (!t.compare()) return;
    Doubles expected(static_cast<std::size_t>(kSequences * kAll), 0.0);
    for (Index r = 0; r < kSequences * kLength; ++r)
      for (const Index e : best_of({scores.as<float>() + r * kAll, scores.as<float>() + (r + 1) * kAll}, kTop))
        expected[static_cast<std::size_t>(r / kLength * kAll + e)] += 10.0 / (4.0 * 11.0);
    Doubles bound;
    for (const double x : expected) bound.push_back(3 * kUnit * x);
    t.expect("load", load, expected, bound);
  });
}

TEST_CASE("balance_update") {
  for (const float clip : {0.5f, INFINITY, NAN})
    for_each_run([&](OpCase& t) {
      const Tensor bias = t.normal({5}, DType::f32), counts = t.values({5}, DType::f32, {0, 4, 10, 4, 2}),
                   scalars = t.values({4}, DType::f32, {1e-3, clip, 1, 1});
      Doubles expected = to_doubles(bias);
      t.launch(BalanceUpdate{.bias = bias, .counts = counts, .scalars = scalars, .rate = 0.25f});
      if (!t.compare()) return;
      const double steps[] = {0.25, 0, -0.25, 0, 0.25};  // the mean is 4
      for (std::size_t e = 0; e < 5 && std::isfinite(clip); ++e) expected[e] += steps[e];
      t.expect("bias", bias, expected, Doubles(5, 4 * kUnit));
    });
}

TEST_CASE("route: what it rejects") {
  OpCase t(1, true);
  const Tensor logits = t.normal({2, 8}, DType::f32), experts = t.unset({2, 5}, DType::i32),
               weights = t.unset({2, 5}, DType::f32);
  check_rejects(
      [&] { t.launch(Route{.scores = logits, .experts = experts, .weights = weights, .logits = logits, .rule = kV3}); },
      "route: 5 of the 4 experts of 2 groups");
}
