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

struct Xxh3Hasher::State {
  XXH3_state_t* state = XXH3_createState();
  ~State() { XXH3_freeState(state); }
};

Xxh3Hasher::Xxh3Hasher() : state_(std::make_unique<State>()) {
  check(state_->state != nullptr, "no memory for a hash state");
  reset();
}
Xxh3Hasher::~Xxh3Hasher() = default;
void Xxh3Hasher::update(std::span<const std::byte> bytes) {
  XXH3_64bits_update(state_->state, bytes.data(), bytes.size());
}
std::uint64_t Xxh3Hasher::digest() const { return XXH3_64bits_digest(state_->state); }
void Xxh3Hasher::reset() { XXH3_64bits_reset(state_->state); }

std::string hex(std::uint64_t value) { return format("{:016x}", value); }

}  // namespace dstrain
