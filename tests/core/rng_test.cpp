#include "lib/core/rng.h"

#include "tests/support/catch.h"

using namespace dstrain;

// Known answers of Random123's kat_vectors, philox4x32 with 10 rounds.
TEST_CASE("philox4x32-10 gives Random123's known answers", "[core]") {
  CHECK(Philox{{0, 0}}(0, 0) == std::array<std::uint32_t, 4>{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
  CHECK(Philox{{0xffffffff, 0xffffffff}}(~0ull, ~0ull) ==
        std::array<std::uint32_t, 4>{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd});
  CHECK(Philox{{0xa4093822, 0x299f31d0}}(0x0370734413198a2e, 0x85a308d3243f6a88) ==
        std::array<std::uint32_t, 4>{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1});
}
