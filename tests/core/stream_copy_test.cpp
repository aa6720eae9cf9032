#include "lib/core/stream_copy.h"

#include <algorithm>
#include <cstdint>
#include <vector>

#include "tests/support/catch.h"

using namespace dstrain;

// Every length around the line size, at every alignment of both ends, between guard bytes.
TEST_CASE("a streaming copy copies exactly its bytes", "[core]") {
  std::vector<std::uint8_t> from(512), to(512);
  for (std::size_t i = 0; i < from.size(); ++i) from[i] = static_cast<std::uint8_t>(i * 37 + 11);
  bool good = true;
  for (std::size_t length : {0u, 1u, 31u, 63u, 64u, 65u, 127u, 128u, 129u, 300u})
    for (std::size_t a = 0; a < 64; a += 3)
      for (std::size_t b = 0; b < 64; ++b) {
        std::fill(to.begin(), to.end(), std::uint8_t{0xEE});
        stream_copy(to.data() + b, from.data() + a, length);
        for (std::size_t i = 0; i < to.size(); ++i)
          good = good && to[i] == (i >= b && i < b + length ? from[a + i - b] : 0xEE);
      }
  CHECK(good);
}
