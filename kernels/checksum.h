#pragma once
// A sum over the bits of a tensor, to compare memory that must be equal.

#include <cstdint>

#include "kernels/op.h"

namespace dstrain {

// result += the sum of word i * checksum_factor(i), modulo 2^64, over the elements' bits as unsigned words. The order
// of the sum does not matter: the same number on every device. As a factor is odd, a change of any one word, by any
// number of its bits, changes the sum.
struct Checksum {
  static constexpr const char* name = "checksum";
  Tensor result;  // (1) i64
  Tensor x;       // (n) f32, bf16, u16 or i32

  void validate() const;
  Cost cost() const;
  std::array<Tensor, 1> outputs() const { return {result}; }
};
void run(Cpu, Stream& stream, const Checksum& op);
void run(Cuda, Stream& stream, const Checksum& op);

constexpr std::uint64_t checksum_factor(std::uint64_t i) {
  const std::uint64_t h = (i + 1) * 0x9e3779b97f4a7c15ull;
  return (h ^ (h >> 32)) | 1;
}

}  // namespace dstrain
