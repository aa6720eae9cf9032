#pragma once
// XXH3, for checksums and for keys of random generators.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

namespace dstrain {

std::uint64_t xxh3(std::span<const std::byte> bytes, std::uint64_t seed = 0);
std::uint64_t xxh3(std::string_view text, std::uint64_t seed = 0);
std::string hex(std::uint64_t value);  // 16 lower-case digits

}  // namespace dstrain
