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
// The same digest as xxh3() (seed 0) of the concatenation of all updates.
class Xxh3Hasher {
 public:
  Xxh3Hasher();
  ~Xxh3Hasher();
  void update(std::span<const std::byte> bytes);
  std::uint64_t digest() const;
  void reset();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

std::string hex(std::uint64_t value);  // 16 lower-case digits

}  // namespace dstrain
