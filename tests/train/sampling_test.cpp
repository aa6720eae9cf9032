// From logits to a token: against the definitions, written plainly.

#include "lib/train/sampling.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>

#include "lib/core/errors.h"
#include "lib/core/rng.h"
#include "tests/support/catch.h"

using namespace dstrain;

namespace {

std::vector<float> random_logits(std::size_t n, std::uint64_t seed) {
  std::vector<float> logits(n);
  for (std::size_t i = 0; i < n; ++i) logits[i] = 3 * normal4(philox(seed, "logits"), 0, i)[0];
  return logits;
}

// transformers' processors one after another over all tokens: what is left out is minus infinity.
std::map<std::int32_t, double> reference(const std::vector<float>& logits, const std::vector<std::int32_t>& seen,
                                         const SamplingOptions& o) {
  const double out = -std::numeric_limits<double>::infinity();
  std::vector<double> s(logits.begin(), logits.end());
  for (std::size_t id = 0; id < s.size(); ++id)
    if (std::find(seen.begin(), seen.end(), static_cast<std::int32_t>(id)) != seen.end())
      s[id] = s[id] < 0 ? s[id] * o.repetition_penalty : s[id] / o.repetition_penalty;
  for (double& x : s) x /= o.temperature;
  if (o.top_k > 0 && o.top_k < static_cast<Index>(s.size())) {
    std::vector<double> sorted = s;
    std::sort(sorted.rbegin(), sorted.rend());
    for (double& x : s)
      if (x < sorted[static_cast<std::size_t>(o.top_k - 1)]) x = out;
  }
  const auto softmax = [](const std::vector<double>& x) {
    const double top = *std::max_element(x.begin(), x.end());
    std::vector<double> p;
    for (const double v : x) p.push_back(std::exp(v - top));
    const double sum = std::accumulate(p.begin(), p.end(), 0.0);
    for (double& v : p) v /= sum;
    return p;
  };
  if (o.top_p < 1) {
    const std::vector<double> p = softmax(s);
    std::vector<std::size_t> order(s.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::sort(order.begin(), order.end(), [&](auto a, auto b) { return p[a] < p[b]; });
    double below = 0;  // of the least likely tokens up to and with this one
    for (std::size_t i = 0; i + 1 < order.size(); ++i)
      if ((below += p[order[i]]) <= 1 - o.top_p) s[order[i]] = out;
  }
  const std::vector<double> p = softmax(s);
  std::map<std::int32_t, double> left;
  for (std::size_t id = 0; id < p.size(); ++id)
    if (p[id] > 0) left[static_cast<std::int32_t>(id)] = p[id];
  return left;
}

}  // namespace

TEST_CASE("candidates are what transformers' processors leave", "[sampling]") {
  const std::vector<float> logits = random_logits(97, 1);
  const std::vector<std::int32_t> seen{3, 3, 90, 17, 40};
  for (const double penalty : {1.0, 1.3, 0.8})
    for (const double temperature : {0.3, 1.0, 2.5})
      for (const Index k : {0, 1, 7, 97, 500})
        for (const double p : {1.0, 0.95, 0.5, 1e-9}) {
          const SamplingOptions o{.repetition_penalty = penalty, .temperature = temperature, .top_k = k, .top_p = p};
          INFO(penalty << " " << temperature << " " << k << " " << p);
          const auto expected = reference(logits, seen, o);
          const auto found = candidates(logits, seen, o);
          REQUIRE(found.size() == expected.size());
          // Sums of at most 97 terms in another order.
          for (const Candidate& c : found) CHECK(std::fabs(c.probability - expected.at(c.id)) <= 97 * 0x1p-52);
        }
}

TEST_CASE("temperature 0 takes the first of the largest, after the penalty", "[sampling]") {
  std::vector<float> logits{1, 4, 4, -1};
  CHECK(candidates(logits, {}, {.temperature = 0})[0].id == 1);
  const std::vector<std::int32_t> seen{1};
  CHECK(candidates(logits, seen, {.repetition_penalty = 1.1, .temperature = 0})[0].id == 2);
  for (const float bad : {std::nanf(""), std::numeric_limits<float>::infinity()}) {
    logits[2] = bad;
    for (const double temperature : {0.0, 1.0}) try {
        candidates(logits, {}, {.temperature = temperature});
        FAIL("no error");
      } catch (const Error& e) {
        CHECK(e.code() == ExitCode::nonfinite);
        CHECK(std::string(e.what()).find("id 2") != std::string::npos);
      }
  }
}

TEST_CASE("draws follow the probabilities and come again", "[sampling]") {
  const std::vector<Candidate> from{{4, 0.5}, {9, 0.3}, {1, 0.2}};
  const std::vector<std::int32_t> prompt{1, 2, 3}, other{1, 2, 4};
  std::map<std::int32_t, int> counts;
  int same = 0;
  constexpr int kDraws = 20000;
  for (Index i = 0; i < kDraws; ++i) {
    const std::int32_t id = draw(from, 7, prompt, i);
    CHECK(id == draw(from, 7, prompt, i));
    ++counts[id];
    same += id == draw(from, 7, other, i);
  }
  // Five standard deviations.
  for (const Candidate& c : from)
    CHECK(std::fabs(counts[c.id] - kDraws * c.probability) <=
          5 * std::sqrt(kDraws * c.probability * (1 - c.probability)));
  // Another prompt draws independently: alike as often as two strangers, 0.25 + 0.09 + 0.04.
  CHECK(std::fabs(same - kDraws * 0.38) <= 5 * std::sqrt(kDraws * 0.38 * 0.62));
}
