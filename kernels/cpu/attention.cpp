#include <cmath>

#include "kernels/cpu/attention_blocks.h"

namespace dstrain {

namespace {

using cpu::HeadRows;
using cpu::kKeyBlock;
using cpu::kQueryBlock;

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

// One block of queries of one head, over all keys that it sees.
template <class T>
void forward_tile(const AttentionForward& op, Index sample, Index head, Index first) {
  const Index size = op.q.dim(3), value_size = op.v.dim(3), queries = std::min(kQueryBlock, op.q.dim(1) - first);
  const Index key_head = head / (op.q.dim(2) / op.k.dim(2));
  const HeadRows<T> q_rows(op.q, sample, head), k_rows(op.k, sample, key_head), v_rows(op.v, sample, key_head);
  cpu::BlockBuffer<T, kQueryBlock> q_buffer;
  cpu::BlockBuffer<T, kKeyBlock> k_buffer, v_buffer;
  const HeadRows<float> q = cpu::load_block(q_rows, first, queries, size, q_buffer.data);
  float most[kQueryBlock], total[kQueryBlock];
  std::fill(most, most + queries, kMinusInfinity);
  std::fill(total, total + queries, 0.0f);
  alignas(64) float scores[kQueryBlock * kKeyBlock];
  alignas(64) float out[kQueryBlock * AttentionForward::kMaxHead];
  std::fill(out, out + queries * value_size, 0.0f);
  const Index all_keys = cpu::keys_seen(op, first + queries - 1);
  for (Index key = cpu::first_key(op, sample, first) / kKeyBlock * kKeyBlock; key < all_keys; key += kKeyBlock) {
    const Index keys = std::min(kKeyBlock, all_keys - key);
    const HeadRows<float> k = cpu::load_block(k_rows, key, keys, size, k_buffer.data);
    const HeadRows<float> v = cpu::load_block(v_rows, key, keys, value_size, v_buffer.data);
    cpu::sgemm(false, true, queries, keys, size, op.scale, q.data, q.stride, k.data, k.stride, 0, scores, kKeyBlock);
    for (Index i = 0; i < queries; ++i) {
      float* const s = scores + i * kKeyBlock;
      const Index seen = std::clamp<Index>(cpu::keys_seen(op, first + i) - key, 0, keys);
      const Index from = std::clamp<Index>(cpu::first_key(op, sample, first + i) - key, 0, seen);
      std::fill(s, s + from, 0.0f);
      std::fill(s + seen, s + keys, 0.0f);
      if (seen == from) continue;
      float block_most = kMinusInfinity, block_total = 0;
#pragma omp simd reduction(max : block_most)
      for (Index j = from; j < seen; ++j) block_most = s[j] > block_most ? s[j] : block_most;
      const float before = most[i], now = std::max(before, block_most);
      const float shift = now == kMinusInfinity ? 0.0f : now;
#pragma omp simd reduction(+ : block_total)
      for (Index j = from; j < seen; ++j) {
        s[j] = cpu::fast_exp(s[j] - shift);
        block_total += s[j];
      }
      if (now != before) {
        const float rescale = cpu::fast_exp(before - shift);
        float* const o = out + i * value_size;
#pragma omp simd
        for (Index d = 0; d < value_size; ++d) o[d] *= rescale;
        total[i] *= rescale;
        most[i] = now;
      }
      total[i] += block_total;
      if (op.dropout.p > 0) {
        float factors[kKeyBlock];
        cpu::dropout_factors(op.dropout, op.dropout.sample_ids.as<std::int64_t>()[sample], head,
                             first + i + op.query_offset, key, seen, factors);
        for (Index j = from; j < seen; ++j) s[j] *= factors[j];
      }
    }
    cpu::sgemm(false, false, queries, value_size, keys, 1, scores, kKeyBlock, v.data, v.stride, 1, out, value_size);
  }
  const HeadRows<T> o_rows(op.o, sample, head);
  float* const lse = op.lse.as<float>() + (sample * op.q.dim(2) + head) * op.q.dim(1) + first;
  for (Index i = 0; i < queries; ++i) {
    T* const o = o_rows.row(first + i);
    const float inverse = total[i] == 0 ? 0.0f : 1.0f / total[i];
#pragma omp simd
    for (Index d = 0; d < value_size; ++d) o[d] = static_cast<T>(out[i * value_size + d] * inverse);
    lse[i] = most[i] + std::log(total[i]);
  }
}

}  // namespace

void run(Cpu, Stream& stream, const AttentionForward& op) {
  const Index heads = op.q.dim(2), blocks = (op.q.dim(1) + kQueryBlock - 1) / kQueryBlock;
  cpu::dispatch_float(op.q.dtype, [&](auto zero) {
    stream.pool().parallel_for(op.q.dim(0) * heads * blocks, [&](Index tile) {
      const Index block = blocks - 1 - tile % blocks;  // under a causal mask the last ones take longest
      forward_tile<decltype(zero)>(op, tile / blocks / heads, tile / blocks % heads, block * kQueryBlock);
    });
  });
}

}  // namespace dstrain
