#include "kernels/cpu/philox_block.h"

#include <vector>

#include "tests/support/catch.h"

using namespace dstrain;

// Against the generator itself, over counts that leave rests and counters whose low word runs over.
TEST_CASE("a block of Philox has the generator's numbers", "[kernels]") {
  const Philox generator = philox(7, "block");
  bool good = true;
  for (const std::uint64_t first : {0ull, 5ull, 0xfffffff0ull, 0xfffffff8ull, 0xfffffff9ull, 0x1fffffffcull})
    for (const std::uint64_t stream : {0ull, 3ull, 0x500000002ull})
      for (Index groups = 0; groups <= 35; ++groups) {
        std::vector<std::uint32_t> bits(static_cast<std::size_t>(4 * groups) + 1, 0xEEEEEEEEu);
        cpu::philox_block(generator, stream, first, groups, bits.data());
        for (Index g = 0; g < groups; ++g) {
          const auto four = generator(stream, first + static_cast<std::uint64_t>(g));
          for (std::size_t i = 0; i < 4; ++i) good = good && bits[static_cast<std::size_t>(4 * g) + i] == four[i];
        }
        good = good && bits.back() == 0xEEEEEEEEu;
      }
  CHECK(good);
}
