#include "kernels/cpu/attention_blocks.h"

namespace dstrain {

namespace {

using cpu::HeadRows;
using cpu::kKeyBlock;
using cpu::kQueryBlock;

// Where one head's gradients are added up, in f32, and dout . o of each of its queries.
struct HeadSums {
  HeadRows<float> dq, dk, dv;
  float* delta;
};

void zero(const HeadRows<float>& rows, Index n, Index width) {
  for (Index i = 0; i < n; ++i) std::fill(rows.row(i), rows.row(i) + width, 0.0f);
}

// With P the probabilities (dropped ones Pd = P f) and dP = dout v^T:
//   dv = Pd^T dout, dS = P (f dP - delta), dq = scale dS k, dk = scale dS^T q, delta = rowsum(dout o) = rowsum(Pd dP).
template <class T>
void backward_head(const AttentionBackward& op, Index sample, Index head, const HeadSums& sums) {
  const Index size = op.q.dim(3), value_size = op.v.dim(3), all_queries = op.q.dim(1), all_keys = op.k.dim(1);
  const Index key_head = head / (op.q.dim(2) / op.k.dim(2));
  const HeadRows<T> q_rows(op.q, sample, head), k_rows(op.k, sample, key_head), v_rows(op.v, sample, key_head),
      o_rows(op.o, sample, head), dout_rows(op.dout, sample, head);
  const float* const lse = op.lse.as<float>() + (sample * op.q.dim(2) + head) * all_queries;
  cpu::BlockBuffer<T, kQueryBlock> q_buffer, dout_buffer;
  cpu::BlockBuffer<T, kKeyBlock> k_buffer, v_buffer;
  alignas(64) float p[kQueryBlock * kKeyBlock], ds[kQueryBlock * kKeyBlock];
  for (Index i = 0; i < all_queries; ++i) {
    const T* const o = o_rows.row(i);
    const T* const dout = dout_rows.row(i);
    float dot = 0;
#pragma omp simd reduction(+ : dot)
    for (Index d = 0; d < value_size; ++d) dot += cpu::to_float(o[d]) * cpu::to_float(dout[d]);
    sums.delta[i] = dot;
  }
  zero(sums.dq, all_queries, size);
  zero(sums.dk, all_keys, size);
  zero(sums.dv, all_keys, value_size);
  for (Index key = 0; key < all_keys; key += kKeyBlock) {
    const Index key_count = std::min(kKeyBlock, all_keys - key);
    const HeadRows<float> k = cpu::load_block(k_rows, key, key_count, size, k_buffer.data);
    const HeadRows<float> v = cpu::load_block(v_rows, key, key_count, value_size, v_buffer.data);
    for (Index first = 0; first < all_queries; first += kQueryBlock) {
      const Index queries = std::min(kQueryBlock, all_queries - first);
      const Index keys = std::min(key_count, cpu::keys_seen(op, first + queries - 1) - key);
      if (keys <= 0 || cpu::first_key(op, sample, first) >= key + keys) continue;
      const HeadRows<float> q = cpu::load_block(q_rows, first, queries, size, q_buffer.data);
      const HeadRows<float> dout = cpu::load_block(dout_rows, first, queries, value_size, dout_buffer.data);
      cpu::sgemm(false, true, queries, keys, size, op.scale, q.data, q.stride, k.data, k.stride, 0, p, kKeyBlock);
      cpu::sgemm(false, true, queries, keys, value_size, 1, dout.data, dout.stride, v.data, v.stride, 0, ds, kKeyBlock);
      for (Index i = 0; i < queries; ++i) {
        float* const p_row = p + i * kKeyBlock;
        float* const ds_row = ds + i * kKeyBlock;
        const Index seen = std::clamp<Index>(cpu::keys_seen(op, first + i) - key, 0, keys);
        const Index from = std::clamp<Index>(cpu::first_key(op, sample, first + i) - key, 0, seen);
        const float row_lse = lse[first + i], delta = sums.delta[first + i];
        if (op.dropout.p > 0) {
          float factors[kKeyBlock];
          cpu::dropout_factors(op.dropout, op.dropout.sample_ids.as<std::int64_t>()[sample], head,
                               first + i + op.query_offset, key, seen, factors);
#pragma omp simd
          for (Index j = from; j < seen; ++j) {
            const float probability = cpu::fast_exp(p_row[j] - row_lse);
            ds_row[j] = probability * (factors[j] * ds_row[j] - delta);
            p_row[j] = probability * factors[j];
          }
        } else {
#pragma omp simd
          for (Index j = from; j < seen; ++j) {
            const float probability = cpu::fast_exp(p_row[j] - row_lse);
            ds_row[j] = probability * (ds_row[j] - delta);
            p_row[j] = probability;
          }
        }
        // Of one key the probability is 1 whatever its score; Adam would turn what rounding leaves into whole updates.
        if (cpu::keys_seen(op, first + i) - cpu::first_key(op, sample, first + i) == 1)
          std::fill(ds_row, ds_row + keys, 0.0f);
        for (float* const row : {p_row, ds_row}) {
          std::fill(row, row + from, 0.0f);
          std::fill(row + seen, row + keys, 0.0f);
        }
      }
      cpu::sgemm(true, false, keys, value_size, queries, 1, p, kKeyBlock, dout.data, dout.stride, 1, sums.dv.row(key),
                 sums.dv.stride);
      cpu::sgemm(true, false, keys, size, queries, op.scale, ds, kKeyBlock, q.data, q.stride, 1, sums.dk.row(key),
                 sums.dk.stride);
      cpu::sgemm(false, false, queries, size, keys, op.scale, ds, kKeyBlock, k.data, k.stride, 1, sums.dq.row(first),
                 sums.dq.stride);
    }
  }
}

// to (B, T, H, D) = sums of the groups of heads of from (B, Hq, T, D) f32, in order of heads.
template <class T>
void store_heads(Stream& stream, const Tensor& to, const Tensor& from) {
  const Index length = to.dim(1), heads = to.dim(2), width = to.dim(3), group = from.dim(1) / heads;
  const float* const sums = from.as<float>();
  cpu::parallel_rows(stream, to.dim(0) * length * heads, width * group, [&](Index i) {
    const Index head = i % heads, position = i / heads % length, sample = i / heads / length;
    T* const out = HeadRows<T>(to, sample, head).row(position);
    const float* const first = sums + ((sample * heads + head) * group * length + position) * width;
    for (Index d = 0; d < width; ++d) {
      float sum = first[d];
      for (Index g = 1; g < group; ++g) sum += first[g * length * width + d];
      out[d] = static_cast<T>(sum);
    }
  });
}

}  // namespace

void run(Cpu, Stream& stream, const AttentionBackward& op) {
  const Index samples = op.q.dim(0), queries = op.q.dim(1), heads = op.q.dim(2), keys = op.k.dim(1);
  const ArenaScope scope(stream.workspace());
  cpu::dispatch_float(op.q.dtype, [&](auto nothing) {
    using T = decltype(nothing);
    constexpr bool half = !std::is_same_v<T, float>;
    const bool apart = half || heads != op.k.dim(2);
    const Tensor delta = stream.workspace().allocate({samples, heads, queries});
    const Tensor dq = half ? stream.workspace().allocate({samples, heads, queries, op.q.dim(3)}) : op.dq;
    const Tensor dk = apart ? stream.workspace().allocate({samples, heads, keys, op.q.dim(3)}) : op.dk;
    const Tensor dv = apart ? stream.workspace().allocate({samples, heads, keys, op.v.dim(3)}) : op.dv;
    // A head's rows in a (B, H, T, D) sum of the workspace, or in the gradient itself.
    const auto rows_of = [](const Tensor& t, bool own, Index sample, Index head) {
      if (!own) return HeadRows<float>(t, sample, head);
      return HeadRows<float>(t.as<float>() + sample * t.stride(0) + head * t.stride(1), t.stride(2));
    };
    stream.pool().parallel_for(samples * heads, [&](Index tile) {
      const Index sample = tile / heads, head = tile % heads;
      backward_head<T>(op, sample, head,
                       {rows_of(dq, half, sample, head), rows_of(dk, apart, sample, head),
                        rows_of(dv, apart, sample, head), delta.as<float>() + tile * queries});
    });
    if (half) store_heads<T>(stream, op.dq, dq);
    if (apart) store_heads<T>(stream, op.dk, dk);
    if (apart) store_heads<T>(stream, op.dv, dv);
  });
}

}  // namespace dstrain
