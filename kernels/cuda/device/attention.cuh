#pragma once
// What our attention kernels share, with and without tensor cores: shapes, the mask, dropout, and dout . o.

#include "kernels/attention.h"
#include "kernels/cuda/device/dispatch.cuh"
#include "kernels/cuda/device/philox.cuh"

namespace dstrain::cuda {

// (B, T, H, D) in memory.
struct Heads {
  void* data;
  Index batch, time, head;
  template <class T>
  __device__ T* at(Index b, Index t, Index h) const {
    return static_cast<T*>(data) + b * batch + t * time + h * head;
  }
};

inline Heads heads(const Tensor& t) { return {t.data, t.stride(0), t.stride(1), t.stride(2)}; }

struct AttentionArgs {
  Index queries, keys, heads, key_heads, size, value_size, query_offset, first_head;
  float scale, p, keep_scale;
  bool causal;
  Philox key;
  const std::int64_t* samples;
  const std::int32_t* first_keys;  // (B, queries), or null
};

// The first key that query i sees; i within its length.
__device__ inline Index first_key(const AttentionArgs& s, Index b, Index i) {
  return s.first_keys == nullptr ? 0 : s.first_keys[b * s.queries + i];
}

// Whether query i sees key j; both within their lengths.
__device__ inline bool seen(const AttentionArgs& s, Index b, Index i, Index j) {
  return i < s.queries && j < s.keys && (!s.causal || j <= i + s.query_offset) && j >= first_key(s, b, i);
}

// 1 / (1 - p) where the probability is kept, 0 where it is dropped.
__device__ inline float kept(const AttentionArgs& s, Index b, Index h, Index i, Index j) {
  if (s.p == 0) return 1.0f;
  const auto index = static_cast<std::uint64_t>(s.first_head + h) << 48 |
                     static_cast<std::uint64_t>(i + s.query_offset) << 24 | static_cast<std::uint64_t>(j / 4);
  const Bits bits = philox(s.key, static_cast<std::uint64_t>(s.samples[b]), index);
  const std::uint32_t mine = j % 4 == 0 ? bits.v[0] : j % 4 == 1 ? bits.v[1] : j % 4 == 2 ? bits.v[2] : bits.v[3];
  return uniform(mine) >= s.p ? s.keep_scale : 0.0f;
}

// The first key that a tile of queries may see, at the start of a tile of keys.
__device__ inline Index key_begin(const AttentionArgs& s, Index b, Index query_begin, int tile) {
  return first_key(s, b, query_begin) / tile * tile;
}

// One past the last key that a tile of queries sees.
__device__ inline Index key_end(const AttentionArgs& s, Index query_begin, int tile) {
  if (!s.causal) return s.keys;
  const Index last = min(s.queries, query_begin + tile) - 1 + s.query_offset;
  return max(Index{0}, min(s.keys, last + 1));
}

template <class Op>
AttentionArgs attention_args(const Op& op) {
  return {.queries = op.q.dim(1),
          .keys = op.k.dim(1),
          .heads = op.q.dim(2),
          .key_heads = op.k.dim(2),
          .size = op.q.dim(3),
          .value_size = op.v.dim(3),
          .query_offset = op.query_offset,
          .first_head = op.dropout.first_head,
          .scale = op.scale,
          .p = op.dropout.p,
          .keep_scale = 1.0f / (1.0f - op.dropout.p),
          .causal = op.mask == AttentionMask::causal,
          .key = op.dropout.key,
          .samples = op.dropout.p > 0 ? op.dropout.sample_ids.template as<std::int64_t>() : nullptr,
          .first_keys = op.first_keys.defined() ? op.first_keys.template as<std::int32_t>() : nullptr};
}

struct AttentionGradient {
  Heads dq, dk, dv, dout, q, k, v;
  const float *lse, *delta;
};

constexpr int kDeltaThreads = 256;

// delta = dout . o of each query; a warp a query.
template <class T>
__global__ void __launch_bounds__(kDeltaThreads)
    attention_delta_kernel(AttentionArgs s, float* delta, Heads dout, Heads o, Index count) {
  const Index i = (static_cast<Index>(blockIdx.x) * kDeltaThreads + threadIdx.x) / 32;
  if (i >= count) return;
  const Index query = i % s.queries, h = i / s.queries % s.heads, b = i / s.queries / s.heads;
  const T* const d = dout.at<const T>(b, query, h);
  const T* const out = o.at<const T>(b, query, h);
  float sum = 0;
  for (Index c = threadIdx.x % 32; c < s.value_size; c += 32) sum += to_float(d[c]) * to_float(out[c]);
  sum = warp_sum(sum);
  if (threadIdx.x % 32 == 0) delta[i] = sum;
}

// Starts blocks of `threads` threads with `memory` bytes of shared memory.
template <class Kernel, class... A>
void start(Stream& stream, Kernel kernel, Index blocks, int threads, std::size_t memory, const char* name,
           const A&... args) {
  if (blocks == 0) return;
  cuda_check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(memory)), name);
  kernel<<<grid(blocks), threads, memory, stream_of(stream)>>>(args...);
  check_launch(name);
}

// Makes delta (B, H, Tq) and says where everything of the gradient is.
inline AttentionGradient attention_gradient(Stream& stream, const AttentionBackward& op, const AttentionArgs& s,
                                            float* delta) {
  const Index count = op.q.dim(0) * s.heads * s.queries;
  dispatch_float(op.q.dtype, [&](auto zero) {
    start(stream, attention_delta_kernel<decltype(zero)>, div_up(count * 32, kDeltaThreads), kDeltaThreads, 0,
          "attention_backward", s, delta, heads(op.dout), heads(op.o), count);
  });
  return {.dq = heads(op.dq),
          .dk = heads(op.dk),
          .dv = heads(op.dv),
          .dout = heads(op.dout),
          .q = heads(op.q),
          .k = heads(op.k),
          .v = heads(op.v),
          .lse = op.lse.as<float>(),
          .delta = delta};
}

}  // namespace dstrain::cuda
