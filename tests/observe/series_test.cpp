// What a plot draws of a long series, and the checksum of TensorBoard's frames.

#include "lib/observe/series.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "lib/core/rng.h"
#include "lib/observe/tensorboard.h"
#include "tests/support/catch.h"

using namespace dstrain;

TEST_CASE("a short series is drawn whole", "[series]") {
  for (const std::size_t n : {0u, 1u, 7u, 20u}) {
    const std::vector<double> values(n, 1.0);
    const auto points = points_to_draw(values, 10);
    REQUIRE(points.size() == n);
    for (std::size_t i = 0; i < n; ++i) CHECK(points[i] == i);
  }
}

TEST_CASE("a long series keeps the extremes and the gaps of every span", "[series]") {
  constexpr std::size_t kBuckets = 10;
  for (const std::size_t n : {21u, 97u, 1000u, 12345u}) {
    std::vector<double> values(n);
    for (std::size_t i = 0; i < n; ++i) values[i] = normal4(philox(n, "series"), 0, i)[0];
    values[n / 3] = std::nan("");
    values[n - 2] = std::numeric_limits<double>::infinity();
    const auto points = points_to_draw(values, kBuckets);
    CHECK(points.size() <= 3 * kBuckets + 2);
    CHECK(std::is_sorted(points.begin(), points.end()));
    CHECK(std::adjacent_find(points.begin(), points.end()) == points.end());
    const auto drawn = [&](std::size_t i) { return std::binary_search(points.begin(), points.end(), i); };
    CHECK((drawn(0) && drawn(n - 1) && drawn(n / 3) && drawn(n - 2)));
    for (std::size_t b = 0; b < kBuckets; ++b) {
      std::size_t low = n, high = n;
      for (std::size_t i = b * n / kBuckets; i < (b + 1) * n / kBuckets; ++i) {
        if (!std::isfinite(values[i])) continue;
        if (low == n || values[i] < values[low]) low = i;
        if (high == n || values[i] > values[high]) high = i;
      }
      CHECK((low == n || (drawn(low) && drawn(high))));
    }
  }
}

TEST_CASE("CRC-32C of known bytes", "[tensorboard]") {
  CHECK(crc32c("") == 0u);
  CHECK(crc32c("123456789") == 0xE3069283u);            // the check value of the CRC catalogue
  CHECK(crc32c(std::string(32, '\0')) == 0x8A9136AAu);  // RFC 3720, B.4
  CHECK(crc32c(std::string(32, '\xff')) == 0x62A8AB43u);
}
