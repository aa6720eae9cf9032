#pragma once
// Softmax attention with grouped queries, blockwise with the online softmax (Dao et al. 2022): a Tq x Tk matrix never
// exists in memory. Head h of the queries reads head h / (H / Hkv) of keys and values.

#include "kernels/op.h"
#include "lib/core/rng.h"

namespace dstrain {

enum class AttentionMask : unsigned char { causal, full };

// Each probability is dropped with chance p and kept ones are divided by 1 - p. Element (sample, global head, query
// position = row + query_offset, key position) keeps its bit whatever the layout:
//   uniform(key(stream = sample, index = (head << 48) | (query position << 24) | (key position / 4))[key position % 4])
//   >= p
struct AttentionDropout {
  float p = 0;
  Philox key{};
  Tensor sample_ids = {};  // (B) i64; needed when p > 0
  Index first_head = 0;    // global number of head 0
};

// o = softmax(scale q k^T + mask) v
struct AttentionForward {
  static constexpr const char* name = "attention";
  Tensor o;    // (B, Tq, H, Dv) strided
  Tensor lse;  // (B, H, Tq) f32, log of the sum of exp(scale q k^T) over what is seen; -inf where nothing is (o is 0)
  Tensor q;    // (B, Tq, H, D) strided
  Tensor k;    // (B, Tk, Hkv, D) strided
  Tensor v;    // (B, Tk, Hkv, Dv) strided
  float scale = 1;
  AttentionMask mask = AttentionMask::causal;
  Index query_offset = 0;  // causal: query i sees key j when j <= i + query_offset
  // (B, Tq) i32, contiguous: query i of sample b sees key j only when j >= first_keys[b, i]. Undefined: every key. The
  // border of a packed document, or the end of left padding. REQUIRES: not falling along a sample's queries, which
  // nobody checks; not negative.
  Tensor first_keys = {};
  AttentionDropout dropout = {};

  void validate() const;  // also: D, Dv at most kMaxHead
  Cost cost() const;      // without first_keys: what it hides depends on the data
  std::array<Tensor, 2> outputs() const { return {o, lse}; }
  std::size_t workspace(Device target) const;
  static constexpr Index kMaxHead = 256;
};
void run(Cpu, Stream& stream, const AttentionForward& op);
void run(Cuda, Stream& stream, const AttentionForward& op);

// Overwrites dq, dk and dv, which must not overlap any input. Gradients of heads that share keys are added in order.
struct AttentionBackward {
  static constexpr const char* name = "attention_backward";
  Tensor dq, dk, dv;  // as q, k, v; strided
  Tensor dout;        // as o; strided
  Tensor o;           // forward's
  Tensor lse;         // forward's
  Tensor q, k, v;     // forward's
  float scale = 1;
  AttentionMask mask = AttentionMask::causal;
  Index query_offset = 0;
  Tensor first_keys = {};
  AttentionDropout dropout = {};

  void validate() const;
  Cost cost() const;
  std::array<Tensor, 3> outputs() const { return {dq, dk, dv}; }
  std::size_t workspace(Device target) const;
};
void run(Cpu, Stream& stream, const AttentionBackward& op);
void run(Cuda, Stream& stream, const AttentionBackward& op);

}  // namespace dstrain
