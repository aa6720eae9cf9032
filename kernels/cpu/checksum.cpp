#include "kernels/checksum.h"

#include <atomic>
#include <cstring>

#include "kernels/cpu/loops.h"

namespace dstrain {

namespace {

template <class Word>
std::uint64_t sum_of(const std::byte* x, Index begin, Index end) {
  std::uint64_t sum = 0;
  for (Index i = begin; i < end; ++i) {
    Word word;
    std::memcpy(&word, x + i * static_cast<Index>(sizeof(Word)), sizeof(Word));
    sum += word * checksum_factor(static_cast<std::uint64_t>(i));
  }
  return sum;
}

}  // namespace

void run(Cpu, Stream& stream, const Checksum& op) {
  std::atomic<std::uint64_t> sum{0};
  const bool wide = size_of(op.x.dtype) == 4;
  cpu::parallel_ranges(stream, op.x.dim(0), cpu::kFlatTile, [&](Index begin, Index end) {
    sum += wide ? sum_of<std::uint32_t>(op.x.data, begin, end) : sum_of<std::uint16_t>(op.x.data, begin, end);
  });
  std::int64_t& result = *op.result.as<std::int64_t>();
  result = static_cast<std::int64_t>(static_cast<std::uint64_t>(result) + sum);
}

}  // namespace dstrain
