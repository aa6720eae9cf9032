#pragma once
// A float32 weight as a bfloat16 and its 16 low bits: exact, and two bytes less than the float32 beside its bfloat16
// copy. bfloat16 is rounded half away from zero here, which can be undone; round to nearest even cannot:
//   hi = (w + 0x8000) >> 16, low = w - (hi << 16), on the bits; w = (hi << 16) + int16(low).

#include <bit>

#include "kernels/op.h"

namespace dstrain {

inline void split_master(float w, bfloat16& hi, std::uint16_t& low) {
  const auto bits = std::bit_cast<std::uint32_t>(w);
  hi.bits = static_cast<std::uint16_t>((bits + 0x8000u) >> 16);
  low = static_cast<std::uint16_t>(bits);
}
inline float join_master(bfloat16 hi, std::uint16_t low) {
  const auto signed_low = static_cast<std::uint32_t>(static_cast<std::int32_t>(static_cast<std::int16_t>(low)));
  return std::bit_cast<float>((static_cast<std::uint32_t>(hi.bits) << 16) + signed_low);
}

// REQUIRES: finite values, whose bfloat16 is finite too; others come back as something else.
struct SplitMaster {
  static constexpr const char* name = "split_master";
  Tensor hi;      // (n) bf16
  Tensor low;     // (n) u16
  Tensor master;  // (n) f32

  void validate() const;
  Cost cost() const;
  std::array<Tensor, 2> outputs() const { return {hi, low}; }
};
void run(Cpu, Stream& stream, const SplitMaster& op);
void run(Cuda, Stream& stream, const SplitMaster& op);

struct JoinMaster {
  static constexpr const char* name = "join_master";
  Tensor master;  // (n) f32
  Tensor hi;      // (n) bf16
  Tensor low;     // (n) u16

  void validate() const;
  Cost cost() const;
  std::array<Tensor, 1> outputs() const { return {master}; }
};
void run(Cpu, Stream& stream, const JoinMaster& op);
void run(Cuda, Stream& stream, const JoinMaster& op);

}  // namespace dstrain
