#include "lib/core/rng.h"

#include <cmath>

#include "lib/core/hash.h"

namespace dstrain {

Philox philox(std::uint64_t seed, std::string_view name) {
  const std::uint64_t h = xxh3(name, seed);
  return Philox{{static_cast<std::uint32_t>(h), static_cast<std::uint32_t>(h >> 32)}};
}

std::array<float, 4> normal4(const Philox& generator, std::uint64_t stream, std::uint64_t index) {
  const auto r = generator(stream, index);
  std::array<float, 4> out{};
  for (int pair = 0; pair < 2; ++pair) {
    // In double, then rounded: the same float on every libm within half an ulp of the true value almost always.
    const double radius = std::sqrt(-2.0 * std::log(static_cast<double>(uniform(r[2 * pair]))));
    const double angle = 6.283185307179586476925 * static_cast<double>(uniform(r[2 * pair + 1]));
    out[2 * pair] = static_cast<float>(radius * std::cos(angle));
    out[2 * pair + 1] = static_cast<float>(radius * std::sin(angle));
  }
  return out;
}

}  // namespace dstrain
