#include "lib/comm/reduce.h"

#include <algorithm>
#include <array>

namespace dstrain {

namespace {

constexpr Index kBlock = 1024;      // elements added at a time, in registers and first-level cache
constexpr Index kTile = 32 * 1024;  // elements a thread takes at a time

template <class T>
struct Wide {
  using Type = float;
};
template <>
struct Wide<double> {
  using Type = double;
};
template <>
struct Wide<std::int32_t> {
  using Type = std::uint32_t;  // wraps, without undefined behaviour
};
template <>
struct Wide<std::int64_t> {
  using Type = std::uint64_t;
};

template <class T>
void reduce_range(std::byte* out, std::span<const std::byte* const> parts, Index begin, Index end, ReduceOp op) {
  using W = typename Wide<T>::Type;
  std::array<W, kBlock> sum;
  for (Index at = begin; at < end; at += kBlock) {
    const Index n = std::min(kBlock, end - at);
    const T* first = reinterpret_cast<const T*>(parts[0]) + at;
    for (Index i = 0; i < n; ++i) sum[static_cast<std::size_t>(i)] = static_cast<W>(first[i]);
    for (std::size_t p = 1; p < parts.size(); ++p) {
      const T* next = reinterpret_cast<const T*>(parts[p]) + at;
      W* s = sum.data();
      if (op == ReduceOp::sum) {
        for (Index i = 0; i < n; ++i) s[i] += static_cast<W>(next[i]);
      } else if constexpr (std::is_integral_v<T>) {
        for (Index i = 0; i < n; ++i) s[i] = static_cast<W>(std::max(static_cast<T>(s[i]), next[i]));
      } else {
        for (Index i = 0; i < n; ++i) {
          const W v = static_cast<W>(next[i]);
          s[i] = v > s[i] || v != v ? v : s[i];
        }
      }
    }
    T* to = reinterpret_cast<T*>(out) + at;
    for (Index i = 0; i < n; ++i) to[i] = static_cast<T>(sum[static_cast<std::size_t>(i)]);
  }
}

}  // namespace

void reduce_in_order(ThreadPool* pool, std::byte* out, std::span<const std::byte* const> parts, Index count,
                     DType dtype, ReduceOp op) {
  const auto range = [&](Index begin, Index end) {
    switch (dtype) {
      case DType::f32:
        return reduce_range<float>(out, parts, begin, end, op);
      case DType::bf16:
        return reduce_range<bfloat16>(out, parts, begin, end, op);
      case DType::f64:
        return reduce_range<double>(out, parts, begin, end, op);
      case DType::i32:
        return reduce_range<std::int32_t>(out, parts, begin, end, op);
      case DType::i64:
        return reduce_range<std::int64_t>(out, parts, begin, end, op);
      default:
        check(false, "no reduction of {}", name_of(dtype));
    }
  };
  if (pool == nullptr || count <= kTile) return range(0, count);
  pool->parallel_for((count + kTile - 1) / kTile,
                     [&](std::int64_t t) { range(t * kTile, std::min(count, (t + 1) * kTile)); });
}

}  // namespace dstrain
