#include "lib/model/partition.h"

#include <algorithm>
#include <functional>

#include "tests/support/catch.h"

using namespace dstrain;

namespace {
std::vector<Index> sizes(const std::vector<LayerRange>& ranges) {
  std::vector<Index> n;
  Index at = 0;
  for (const LayerRange& r : ranges) {
    CHECK(r.begin == at);
    n.push_back(r.end - r.begin);
    at = r.end;
  }
  return n;
}
}  // namespace

TEST_CASE("layers are spread so that the most expensive stage costs least", "[model]") {
  CHECK(sizes(partition(8, 1, 0, 1)) == std::vector<Index>{8});
  CHECK(sizes(partition(8, 1, 0, 2)) == std::vector<Index>{4, 4});
  CHECK(sizes(partition(8, 1, 2, 2)) == std::vector<Index>{5, 3});     // the head costs two layers
  CHECK(sizes(partition(8, 1, 0, 3)) == std::vector<Index>{2, 3, 3});  // the remainder goes to later stages
  CHECK(sizes(partition(8, 1, 100, 4)) == std::vector<Index>{2, 2, 3, 1});
  CHECK(sizes(partition(8, 1, 0, 8)) == std::vector<Index>(8, 1));
  CHECK_THROWS_AS(partition(3, 1, 0, 4), Error);
}

TEST_CASE("no other split is cheaper", "[model]") {
  for (Index layers = 1; layers <= 9; ++layers)
    for (int stages = 1; stages <= layers; ++stages)
      for (const double head : {0.0, 0.7, 2.5, 40.0}) {
        const auto cost = [&](const std::vector<Index>& n) {
          double most = 0;
          for (std::size_t s = 0; s < n.size(); ++s)
            most = std::max(most, static_cast<double>(n[s]) + (s + 1 == n.size() ? head : 0));
          return most;
        };
        const double ours = cost(sizes(partition(layers, 1, head, stages)));
        // Every composition of `layers` into `stages` positive parts.
        std::vector<Index> parts(static_cast<std::size_t>(stages), 1);
        const std::function<void(std::size_t, Index)> walk = [&](std::size_t s, Index rest) {
          if (s + 1 == parts.size()) {
            parts[s] = rest;
            CHECK(ours <= cost(parts));
            return;
          }
          for (Index k = 1; k <= rest - static_cast<Index>(parts.size() - s - 1); ++k) {
            parts[s] = k;
            walk(s + 1, rest - k);
          }
        };
        walk(0, layers);
      }
}
