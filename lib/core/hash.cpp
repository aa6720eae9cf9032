#include "lib/core/hash.h"

#include <xxhash.h>

#include "lib/core/errors.h"

namespace dstrain {

std::uint64_t xxh3(std::span<const std::byte> bytes, std::uint64_t seed) {
  return XXH3_64bits_withSeed(bytes.data(), bytes.size(), seed);
}

std::uint64_t xxh3(std::string_view text, std::uint64_t seed) {
  return XXH3_64bits_withSeed(text.data(), text.size(), seed);
}

std::string hex(std::uint64_t value) { return format("{:016x}", value); }

}  // namespace dstrain
