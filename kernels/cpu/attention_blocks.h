#pragma once
// What both directions of the CPU attention share.

#include "kernels/attention.h"
#include "kernels/cpu/blas.h"
#include "kernels/cpu/loops.h"
#include "kernels/cpu/philox_block.h"
#include "kernels/cpu/vector_math.h"

namespace dstrain::cpu {

constexpr Index kQueryBlock = 64, kKeyBlock = 128;

// One head of one sample: rows are positions.
template <class T>
struct HeadRows {
  T* data;
  Index stride;
  HeadRows(const Tensor& t, Index sample, Index head)
      : data(reinterpret_cast<T*>(t.data) + sample * t.stride(0) + head * t.stride(2)), stride(t.stride(1)) {}
  HeadRows(T* memory, Index row_stride) : data(memory), stride(row_stride) {}
  T* row(Index i) const { return data + i * stride; }
};

// Rows [first, first + n) in f32: the memory itself, or a copy in `buffer` (n * width).
inline HeadRows<float> load_block(const HeadRows<float>& rows, Index first, Index, Index, float*) {
  return {rows.row(first), rows.stride};
}
inline HeadRows<float> load_block(const HeadRows<bfloat16>& rows, Index first, Index n, Index width, float* buffer) {
  for (Index i = 0; i < n; ++i) convert(buffer + i * width, rows.row(first + i), width);
  return {buffer, width};
}
// The buffer that load_block needs.
template <class T, Index rows>
struct BlockBuffer {
  float data[std::is_same_v<T, float> ? 1 : rows * AttentionForward::kMaxHead];
};

// How many keys, counted from the first, query i sees.
template <class Op>
Index keys_seen(const Op& op, Index i) {
  const Index keys = op.k.dim(1);
  return op.mask == AttentionMask::full ? keys : std::clamp<Index>(i + op.query_offset + 1, 0, keys);
}

// The first key that query i sees.
template <class Op>
Index first_key(const Op& op, Index sample, Index i) {
  return op.first_keys.defined() ? op.first_keys.template as<std::int32_t>()[sample * op.q.dim(1) + i] : 0;
}

// factors[j] = 0 or 1 / (1 - p) for keys first .. first + n - 1; `first` is a multiple of 4, n at most
// kKeyBlock.
inline void dropout_factors(const AttentionDropout& dropout, std::int64_t sample, Index head, Index query, Index first,
                            Index n, float* factors) {
  const float kept = 1.0f / (1.0f - dropout.p);
  const std::uint64_t base =
      (static_cast<std::uint64_t>(dropout.first_head + head) << 48) | (static_cast<std::uint64_t>(query) << 24);
  std::uint32_t bits[kKeyBlock];
  philox_block(dropout.key, static_cast<std::uint64_t>(sample), base | static_cast<std::uint64_t>(first / 4),
               (n + 3) / 4, bits);
#pragma omp simd
  for (Index j = 0; j < n; ++j) factors[j] = uniform(bits[j]) >= dropout.p ? kept : 0.0f;
}

}  // namespace dstrain::cpu
