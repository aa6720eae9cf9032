#include "kernels/split_master.h"

#include "kernels/cpu/loops.h"

namespace dstrain {

void run(Cpu, Stream& stream, const SplitMaster& op) {
  bfloat16* const hi = op.hi.as<bfloat16>();
  std::uint16_t* const low = op.low.as<std::uint16_t>();
  const float* const master = op.master.as<float>();
  cpu::parallel_ranges(stream, op.master.dim(0), cpu::kFlatTile, [&](Index begin, Index end) {
    for (Index i = begin; i < end; ++i) split_master(master[i], hi[i], low[i]);
  });
}

void run(Cpu, Stream& stream, const JoinMaster& op) {
  float* const master = op.master.as<float>();
  const bfloat16* const hi = op.hi.as<bfloat16>();
  const std::uint16_t* const low = op.low.as<std::uint16_t>();
  cpu::parallel_ranges(stream, op.master.dim(0), cpu::kFlatTile, [&](Index begin, Index end) {
    for (Index i = begin; i < end; ++i) master[i] = join_master(hi[i], low[i]);
  });
}

}  // namespace dstrain
