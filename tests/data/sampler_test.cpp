#include "lib/data/sampler.h"

#include <cmath>
#include <map>
#include <set>

#include "tests/support/catch.h"

using namespace dstrain;

TEST_CASE("a permutation hits every number once, at every size") {
  for (Index n = 1; n <= 300; ++n) {
    const Permutation p(9, static_cast<std::uint64_t>(n), n);
    std::set<Index> seen;
    for (Index i = 0; i < n; ++i) seen.insert(p(i));
    REQUIRE(seen.size() == static_cast<std::size_t>(n));
    REQUIRE(*seen.begin() == 0);
    REQUIRE(*seen.rbegin() == n - 1);
  }
  const Index n = 100003;
  const Permutation p(1, 2, n);
  std::vector<char> seen(static_cast<std::size_t>(n), 0);
  for (Index i = 0; i < n; ++i) ++seen[static_cast<std::size_t>(p(i))];
  CHECK(std::count(seen.begin(), seen.end(), 1) == n);
}

TEST_CASE("orders depend on seed and epoch, and every place is equally likely") {
  const auto order = [](std::uint64_t seed, std::uint64_t epoch) {
    const Permutation p(seed, epoch, 50);
    std::vector<Index> v;
    for (Index i = 0; i < 50; ++i) v.push_back(p(i));
    return v;
  };
  CHECK(order(1, 0) == order(1, 0));
  CHECK(order(1, 0) != order(1, 1));
  CHECK(order(1, 0) != order(2, 0));
  // Counts of (i, p(i)) over many keys are binomial: within 5 standard deviations, of 100 cells.
  constexpr int kKeys = 4000;
  constexpr Index kSize = 10;
  std::map<std::pair<Index, Index>, int> counts;
  for (int k = 0; k < kKeys; ++k) {
    const Permutation p(static_cast<std::uint64_t>(k), 0, kSize);
    for (Index i = 0; i < kSize; ++i) ++counts[{i, p(i)}];
  }
  const double mean = kKeys / 10.0, deviation = std::sqrt(kKeys * 0.1 * 0.9);
  for (Index i = 0; i < kSize; ++i)
    for (Index j = 0; j < kSize; ++j) CHECK(std::abs(counts[{i, j}] - mean) < 5 * deviation);
}

TEST_CASE("each sample comes once an epoch and each token is predicted once, over three epochs") {
  // Lengths around multiples of T, and sources too short for a sample.
  const std::vector<Index> sources = {1, 2, 17, 0, 32, 33, 34, 1000};
  const Index t = 16;
  const Sampler sampler(sources, t, 5, true);
  // ceil((n - 1) / T) samples a source.
  CHECK(sampler.samples() == 0 + 1 + 1 + 0 + 2 + 2 + 3 + 63);
  std::vector<std::pair<Index, Index>> orders[3];
  for (Index epoch = 0; epoch < 3; ++epoch) {
    std::map<std::pair<Index, Index>, int> predicted;  // (source, token) -> times
    for (Index i = 0; i < sampler.samples(); ++i) {
      const Sample s = sampler.locate(epoch * sampler.samples() + i);
      REQUIRE(s.epoch == epoch);
      REQUIRE(s.begin % t == 0);
      REQUIRE(s.tokens >= 2);
      REQUIRE(s.tokens <= t + 1);
      REQUIRE(s.begin + s.tokens <= sources[static_cast<std::size_t>(s.source)]);
      for (Index k = 1; k < s.tokens; ++k) ++predicted[{s.source, s.begin + k}];
      orders[epoch].emplace_back(s.source, s.begin);
    }
    std::size_t expected = 0;
    for (const Index n : sources) expected += static_cast<std::size_t>(n > 1 ? n - 1 : 0);
    CHECK(predicted.size() == expected);
    for (const auto& [token, times] : predicted) REQUIRE(times == 1);
  }
  CHECK(orders[0] != orders[1]);
  CHECK(orders[1] != orders[2]);
  std::sort(orders[0].begin(), orders[0].end());
  std::sort(orders[2].begin(), orders[2].end());
  CHECK(orders[0] == orders[2]);
}

TEST_CASE("without shuffling samples come in order") {
  const Sampler sampler({20, 9}, 8, 1, false);
  REQUIRE(sampler.samples() == 4);
  const Sample last = sampler.locate(2);
  CHECK(last.source == 0);
  CHECK(last.begin == 16);
  CHECK(last.tokens == 4);
  CHECK(sampler.locate(3).source == 1);
  CHECK(sampler.locate(3).tokens == 9);
  CHECK(sampler.locate(4).begin == 0);
  CHECK(sampler.locate(4).epoch == 1);
  CHECK_THROWS_WITH(Sampler({1, 0}, 8, 1, true), "no sample: 2 sources with fewer than two tokens each");
}
