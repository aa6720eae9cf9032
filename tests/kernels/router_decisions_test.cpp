// A million rows of scores: which experts they choose, ties, infinities and numbers that are none included; and how far
// rounding of the logits reaches.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <numeric>

#include "kernels/matmul.h"
#include "kernels/router.h"
#include "tests/kernels/op_case.h"

using namespace dstrain;
using namespace dstrain::test;

namespace {

constexpr std::size_t kExperts = 64, kTop = 6;

// Larger first, then the lower index; what is no number last.
template <class T>
std::vector<std::size_t> ranking(const T* values, std::size_t n) {
  std::vector<std::size_t> order(n);
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return std::isnan(values[b]) ? !std::isnan(values[a]) : values[a] > values[b];
  });
  return order;
}

// What a row's scores decide, and by how little: of the groups and of the experts in them the last that is taken less
// the first that is left.
template <class T>
struct Decision {
  std::vector<std::size_t> experts;  // ascending
  T group_gap, expert_gap;
};
template <class T>
Decision<T> decide(const T* scores, const float* bias, const RouterRule& rule) {
  T values[kExperts];
  for (std::size_t e = 0; e < kExperts; ++e) values[e] = scores[e] + (bias ? static_cast<T>(bias[e]) : T{0});
  Decision<T> d{{}, std::numeric_limits<T>::infinity(), std::numeric_limits<T>::infinity()};
  const auto groups = static_cast<std::size_t>(rule.groups), kept = static_cast<std::size_t>(rule.top_groups),
             size = kExperts / groups;
  std::vector<bool> open(groups, true);
  if (kept < groups) {
    std::vector<T> sums;
    for (std::size_t g = 0; g < groups; ++g) {
      const auto order = ranking(values + g * size, size);
      T sum = 0;
      for (std::size_t k = 0; k < std::min(size, static_cast<std::size_t>(rule.group_best)); ++k)
        sum += values[g * size + order[k]];
      sums.push_back(sum);
    }
    const auto order = ranking(sums.data(), groups);
    for (std::size_t g = kept; g < groups; ++g) open[order[g]] = false;
    d.group_gap = sums[order[kept - 1]] - sums[order[kept]];
  }
  std::vector<std::size_t> candidates;
  for (const std::size_t e : ranking(values, kExperts))
    if (open[e / size]) candidates.push_back(e);
  d.experts.assign(candidates.begin(), candidates.begin() + kTop);
  if (candidates.size() > kTop) d.expert_gap = values[candidates[kTop - 1]] - values[candidates[kTop]];
  std::sort(d.experts.begin(), d.experts.end());
  return d;
}

const RouterRule kV3{.groups = 8, .top_groups = 4, .scale = 2.5f};
const RouterRule kV2{.scoring = RouterScores::softmax, .normalize = false};
const RouterRule kV2Grouped{
    .scoring = RouterScores::softmax, .groups = 8, .top_groups = 3, .group_best = 1, .normalize = false, .scale = 16};

std::uint64_t next(std::uint64_t& state) {  // xorshift
  state ^= state << 13;
  state ^= state >> 7;
  return state ^= state << 17;
}

// Four kinds of rows in turn: any numbers; few different ones; some that are infinite or none; neighbours of one
// number.
void fill_logits(float* logits, std::size_t rows, std::uint64_t seed) {
  std::uint64_t state = seed * 0x9E3779B97F4A7C15ull + 1;
  for (std::size_t i = 0; i < rows * kExperts; ++i) {
    const std::uint64_t r = next(state);
    const float any = static_cast<float>(static_cast<double>(r >> 11) * 0x1p-50) - 4.0f;  // -4 to 4
    switch (i / kExperts % 4) {
      case 0:
        logits[i] = any;
        break;
      case 1:
        logits[i] = static_cast<float>(r % 5) - 2.0f;
        break;
      case 2:
        logits[i] = r % 8 == 0 ? NAN : r % 8 == 1 ? INFINITY : r % 8 == 2 ? -INFINITY : any;
        break;
      default:
        logits[i] = 0.75f + static_cast<float>(r % 16) * 0x1p-24f;
    }
  }
}

}  // namespace

// So the same scores lead to the same experts on every device.
TEST_CASE("route: a million rows choose as a plain loop does from the same scores") {
  constexpr std::size_t kRows = 1 << 15, kChunks = 31;  // more than 10^6 in all
  for (const std::string& name : devices())
    for (const auto& [rule, biased] : {std::pair{kV3, true}, std::pair{kV2, false}, std::pair{kV2Grouped, false}}) {
      CAPTURE(name, rule.groups, biased);
      std::size_t wrong = 0, decided = 0;
      for (std::size_t chunk = 0; chunk < kChunks; ++chunk) {
        // The three rules share the million but for V3's, which has all of it.
        if (!biased && chunk % 8 != 0) continue;
        OpCase t(2, true, name == "cuda" ? Device::cuda : Device::cpu);
        const Shape shape{static_cast<Index>(kRows), static_cast<Index>(kExperts)},
            chosen{static_cast<Index>(kRows), static_cast<Index>(kTop)};
        const Tensor logits = t.unset(shape, DType::f32), scores = t.unset(shape, DType::f32),
                     experts = t.unset(chosen, DType::i32), weights = t.unset(chosen, DType::f32);
        fill_logits(logits.as<float>(), kRows, chunk + 1);
        Tensor bias;
        if (biased) {  // below -1, so that a masked group at 0 would win; two are no help
          bias = t.normal({static_cast<Index>(kExperts)}, DType::f32, 0.3);
          for (std::size_t e = 0; e < kExperts; ++e) bias.as<float>()[e] -= 1.2f;
          if (chunk % 4 == 1) bias.as<float>()[3] = -INFINITY, bias.as<float>()[40] = NAN;
        }
        t.launch(Route{
            .scores = scores, .experts = experts, .weights = weights, .logits = logits, .bias = bias, .rule = rule});
        for (std::size_t r = 0; r < kRows; ++r) {
          const auto expected =
              decide(scores.as<float>() + r * kExperts, biased ? bias.as<float>() : nullptr, rule).experts;
          const std::int32_t* const ours = experts.as<std::int32_t>() + r * kTop;
          wrong += std::equal(expected.begin(), expected.end(), ours,
                              [](std::size_t a, std::int32_t b) { return static_cast<std::int32_t>(a) == b; })
                       ? 0
                       : 1;
        }
        decided += kRows;
      }
      CHECK(wrong == 0);
      if (biased) CHECK(decided >= 1000000);
      std::printf("%s: %zu rows, %s: %zu decisions differ from the loop's\n", name.c_str(), decided,
                  biased             ? "V3"
                  : rule.groups == 1 ? "V2"
                                     : "V2, groups",
                  wrong);
    }
}

// Another device, and another order of the sum over a row's elements as another mesh may have it.
TEST_CASE("route: from hidden states decisions differ only where rounding can make them") {
  constexpr Index kRows = 1 << 15, kWidth = 96;
  constexpr auto kAll = static_cast<Index>(kExperts);
  for (const std::string& name : devices()) {
    OpCase cpu(2, true), other(2, true, name == "cuda" ? Device::cuda : Device::cpu);
    struct Routed {
      const float* scores;
      const std::int32_t* experts;
    };
    std::vector<double> x(static_cast<std::size_t>(kRows * kWidth)), w(kExperts * static_cast<std::size_t>(kWidth));
    std::vector<float> bias(kExperts);
    {
      OpCase values(1, true);
      const auto copy = [](const Tensor& t, auto& to) {
        for (std::size_t i = 0; i < to.size(); ++i) to[i] = t.as<float>()[i];
      };
      copy(values.normal({kRows, kWidth}, DType::f32), x);
      copy(values.normal({kAll, kWidth}, DType::f32, 0.1), w);
      copy(values.normal({kAll}, DType::f32, 0.02), bias);
    }
    const auto route = [&](OpCase& t, bool reversed) {
      const auto turned = [&](const std::vector<double>& from, Index rows) {
        const Tensor to = t.unset({rows, kWidth}, DType::f32);
        for (Index i = 0; i < rows * kWidth; ++i)
          to.as<float>()[i] = static_cast<float>(
              from[static_cast<std::size_t>(reversed ? i / kWidth * kWidth + kWidth - 1 - i % kWidth : i)]);
        return to;
      };
      const Tensor hidden = turned(x, kRows), weight = turned(w, kAll), b = t.unset({kAll}, DType::f32);
      std::copy(bias.begin(), bias.end(), b.as<float>());
      const Tensor scores = t.unset({kRows, kAll}, DType::f32),
                   experts = t.unset({kRows, static_cast<Index>(kTop)}, DType::i32),
                   weights = t.unset({kRows, static_cast<Index>(kTop)}, DType::f32);
      t.launch(Matmul{.c = scores, .a = hidden, .b = weight, .transpose_b = true});
      t.launch(
          Route{.scores = scores, .experts = experts, .weights = weights, .logits = scores, .bias = b, .rule = kV3});
      return Routed{scores.as<float>(), experts.as<std::int32_t>()};
    };
    const Routed one = route(cpu, false), two = route(other, name == "cpu");
    std::size_t differ = 0, near = 0, beyond = 0;
    for (std::size_t r = 0; r < static_cast<std::size_t>(kRows); ++r) {
      const bool same = std::equal(one.experts + r * kTop, one.experts + (r + 1) * kTop, two.experts + r * kTop);
      // In double, with what a float32 logit may be off by: a unit roundoff a product and addition. A sigmoid's slope
      // is 1/4 at most; its own operations and the bias's sum are off by eight more.
      double scores[kExperts], off = 0;
      for (std::size_t e = 0; e < kExperts; ++e) {
        double logit = 0, size = 0;
        for (std::size_t c = 0; c < static_cast<std::size_t>(kWidth); ++c) {
          const double product =
              x[r * static_cast<std::size_t>(kWidth) + c] * w[e * static_cast<std::size_t>(kWidth) + c];
          logit += product;
          size += std::fabs(product);
        }
        scores[e] = 1 / (1 + std::exp(-logit));
        off = std::max(off, (static_cast<double>(kWidth) * size / 4 + 8) * kUnit);
      }
      const auto d = decide(scores, bias.data(), kV3);
      const bool close = d.expert_gap <= 2 * off || d.group_gap <= 2 * (2 * off + 4 * kUnit);
      differ += same ? 0 : 1;
      near += close ? 1 : 0;
      beyond += !same && !close ? 1 : 0;
      // Where nothing is close both are what exact numbers decide.
      if (close) continue;
      beyond += std::equal(d.experts.begin(), d.experts.end(), one.experts + r * kTop,
                           [](std::size_t a, std::int32_t b) { return static_cast<std::int32_t>(a) == b; })
                    ? 0
                    : 1;
    }
    CHECK(beyond == 0);
    CHECK(near < static_cast<std::size_t>(kRows) / 20);  // the bound says something
    std::printf("cpu and %s: of %td rows %zu are decided by less than rounding's bound, %zu differ, %zu beyond it\n",
                name == "cuda" ? "cuda" : "another order of sums", static_cast<std::ptrdiff_t>(kRows), near, differ,
                beyond);
  }
}
