#include "lib/core/stream_copy.h"

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace dstrain {

void stream_copy(void* to, const void* from, std::size_t bytes) {
  constexpr std::size_t kLine = 64;  // bytes; streaming stores want whole lines
  auto* target = static_cast<std::byte*>(to);
  const auto* source = static_cast<const std::byte*>(from);
  const std::size_t head = std::min(bytes, (kLine - reinterpret_cast<std::uintptr_t>(target) % kLine) % kLine);
  const std::size_t lines = (bytes - head) / kLine;
  std::memcpy(target, source, head);
  target += head;
  source += head;
  for (std::size_t i = 0; i < lines; ++i, target += kLine, source += kLine) {
    const __m256i low = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(source));
    const __m256i high = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(source + kLine / 2));
    _mm256_stream_si256(reinterpret_cast<__m256i*>(target), low);
    _mm256_stream_si256(reinterpret_cast<__m256i*>(target + kLine / 2), high);
  }
  _mm_sfence();  // streaming stores are not ordered by the release that publishes them
  std::memcpy(target, source, bytes - head - lines * kLine);
}

}  // namespace dstrain
