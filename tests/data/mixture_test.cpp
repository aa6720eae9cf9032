#include "lib/data/mixture.h"

#include <cmath>
#include <numeric>

#include "lib/data/sampler.h"
#include "tests/support/catch.h"

using namespace dstrain;

namespace {

const std::vector<std::vector<double>> kWeights = {
    {1}, {1, 1}, {0.7, 0.3}, {1, 2, 3, 4, 5}, {1e-3, 1, 1e3}, {0.5, 0.2, 0.1, 0.1, 0.05, 0.03, 0.02}, {1e-6, 1e6}};

double sum_of(const std::vector<double>& w) { return std::accumulate(w.begin(), w.end(), 0.0); }

}  // namespace

TEST_CASE("every first n samples hold the weights' shares, and each source counts up from 0") {
  for (const auto& weights : kWeights) {
    const Mixture mixture(weights);
    // Half a sample for each level of a tree over the sources.
    const double bound = 0.5 * std::ceil(std::log2(static_cast<double>(weights.size()))) + 1e-9;
    std::vector<Index> seen(weights.size(), 0);
    for (Index n = 0; n < 20000; ++n) {
      REQUIRE(mixture.counts(n) == seen);
      const Mixture::Place place = mixture.at(n);
      REQUIRE(place.ordinal == seen.at(static_cast<std::size_t>(place.source))++);
      for (std::size_t s = 0; s < weights.size(); ++s)
        REQUIRE(std::fabs(static_cast<double>(seen[s]) - static_cast<double>(n + 1) * weights[s] / sum_of(weights)) <=
                bound);
    }
  }
}

TEST_CASE("shares hold at any index, without walking there") {
  for (const auto& weights : kWeights) {
    const Mixture mixture(weights);
    for (const Index n : {Index{1} << 40, (Index{1} << 62) - 1}) {
      const auto counts = mixture.counts(n);
      CHECK(std::accumulate(counts.begin(), counts.end(), Index{0}) == n);
      const double levels = std::ceil(std::log2(static_cast<double>(weights.size())));
      for (std::size_t s = 0; s < weights.size(); ++s) {
        const double share = static_cast<double>(n) * (weights[s] / sum_of(weights));
        // Shares have 53 bits, and so have the numbers of this line.
        CHECK(std::fabs(static_cast<double>(counts[s]) - share) <=
              levels * (0.5 + 0x1p-53 * static_cast<double>(n)) + 0x1p-51 * share);
      }
      const Mixture::Place place = mixture.at(n - 1);
      CHECK(place.ordinal + 1 == counts[static_cast<std::size_t>(place.source)]);
    }
  }
}

TEST_CASE("a mixture is told from others, whatever its scale") {
  CHECK(Mixture({1, 2, 3}).fingerprint() == Mixture({2, 4, 6}).fingerprint());
  CHECK(Mixture({1, 2, 3}).fingerprint() != Mixture({1, 2, 4}).fingerprint());
  CHECK(Mixture({1, 2, 3}).fingerprint() != Mixture({2, 1, 3}).fingerprint());
}

TEST_CASE("with weights each source goes through epochs of its own") {
  const Index t = 8;
  const std::vector<Index> tokens = {200, 90, 1000};
  const Sampler sampler(tokens, t, 5, true, {1, 2, 1});
  std::vector<std::vector<Index>> read(3);
  const Index samples = 400;
  for (Index i = 0; i < samples; ++i) {
    const Sample s = sampler.locate(i);
    auto& mine = read[static_cast<std::size_t>(s.source)];
    REQUIRE(s.epoch == static_cast<Index>(mine.size()) / sampler.samples(s.source));
    REQUIRE(s.begin % t == 0);
    REQUIRE(s.tokens == std::min(t + 1, tokens[static_cast<std::size_t>(s.source)] - s.begin));
    mine.push_back(s.begin);
  }
  CHECK(read[1].size() == 200);
  const auto epochs = sampler.epochs(samples);
  std::vector<Index> first;
  for (std::size_t s = 0; s < 3; ++s) {
    const auto size = static_cast<std::size_t>(sampler.samples(static_cast<Index>(s)));
    CHECK(epochs[s] == static_cast<double>(read[s].size()) / static_cast<double>(size));
    for (std::size_t e = 0; (e + 1) * size <= read[s].size(); ++e) {
      std::vector<Index> order(read[s].begin() + static_cast<std::ptrdiff_t>(e * size),
                               read[s].begin() + static_cast<std::ptrdiff_t>((e + 1) * size));
      if (e > 0) CHECK(order != first);
      first = order;
      std::sort(order.begin(), order.end());
      for (std::size_t i = 0; i < size; ++i) REQUIRE(order[i] == static_cast<Index>(i) * t);
    }
  }
  CHECK_THROWS_WITH(Sampler({20, 1}, 8, 1, true, {1, 1}),
                    "no sample: source 1 has a weight and 1 token(s); two are needed");
  // Without weights: the whole list as often.
  CHECK(Sampler(tokens, t, 5, true).epochs(324) == std::vector<double>(3, 2.0));
}
