#pragma once
// Norm, multi-head attention with grouped queries (Vaswani et al. 2017; Ainslie et al. 2023), output projection.
// Heads are cut over the tensor group. Rotary positions (Su et al. 2021, rotate_half form) when frequencies are given.

#include <string>

#include "lib/layers/linear.h"
#include "lib/layers/norm.h"

namespace dstrain {

struct AttentionSpec {
  Index heads = 0;       // this rank's query heads
  Index kv_heads = 0;    // this rank's key-value heads
  Index first_head = 0;  // global number of this rank's first query head
  Index head_dim = 0;
  Index layer = 0;                              // index in the model: names the dropout streams
  Index cache_slot = 0;                         // index in this stage's KvCache
  float scale = 0;                              // of the scores
  std::vector<float> inverse_frequencies = {};  // (head_dim / 2), empty: no rotary embedding
  float attention_dropout = 0;
  float residual_dropout = 0;
};

class Attention final : public Layer {
 public:
  // qkv: column, rows [q | k | v]; out: row.
  Attention(AttentionSpec spec, Norm norm, Linear qkv, Linear out);

  Hidden forward(Context& context, const Batch& batch, const Hidden& x, std::unique_ptr<Saved>& saved) override;
  Tensor backward(Context& context, const Batch& batch, const Tensor& dy, Saved& saved) override;
  void visit(const ParamVisitor& visitor) override;
  void prepare(Arena& constants) override;

 private:
  struct Kept;
  struct Heads {
    Tensor q, k, v;  // (rows, heads, head_dim), views of a merged matrix
  };
  Heads split(const Tensor& qkv) const;
  // Rotates queries and keys of a merged matrix in place.
  void rotate(Context& context, const Batch& batch, const Tensor& qkv, bool backward) const;

  AttentionSpec spec_;
  Norm norm_;
  Linear qkv_;
  Linear out_;
  Tensor frequencies_;  // (head_dim / 2) f32 on the stage's device
};

}  // namespace dstrain
