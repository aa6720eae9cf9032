#pragma once
// Queries and keys of multi-head latent attention (DeepSeek-AI, "DeepSeek-V2", 2024): of every head the last Dr
// elements carry the position, rotated in pairs; the key's are shared by all heads.

#include "kernels/op.h"

namespace dstrain {

// In one pass: q's last Dr elements of every head are rotated in place, and k = [kv's first Dn | shared, rotated].
// Pair i turns by positions * inverse_frequencies[i]; both are multiplied by attention_factor. It is (2i, 2i + 1), or
// without `neighbours` (i, i + Dr/2). Hugging Face's rope_interleave gives the same scores: it permutes queries and
// keys alike.
struct MlaHeads {
  static constexpr const char* name = "mla_heads";
  Tensor q;                    // (rows, H, Dn + Dr) strided, updated
  Tensor k;                    // (rows, H, Dn + Dr) strided
  Tensor kv;                   // (rows, H, Dn + Dv) strided: [key without position | value]
  Tensor shared;               // (rows, Dr) strided rows
  Tensor positions;            // (rows) i32
  Tensor inverse_frequencies;  // (Dr / 2) f32
  float attention_factor = 1;
  bool neighbours = true;

  void validate() const;
  Cost cost() const;
  std::array<Tensor, 2> outputs() const { return {q, k}; }
};
void run(Cpu, Stream& stream, const MlaHeads& op);
void run(Cuda, Stream& stream, const MlaHeads& op);

// Its gradient: dq's last Dr are turned back in place, dkv's first Dn are dk's, dshared is the sum over the heads, in
// their order in f32, of dk's last Dr turned back.
struct MlaHeadsGradient {
  static constexpr const char* name = "mla_heads_gradient";
  Tensor dq;                   // (rows, H, Dn + Dr) strided, updated
  Tensor dkv;                  // (rows, H, Dn + Dv) strided; the first Dn of each head are written
  Tensor dshared;              // (rows, Dr) strided rows
  Tensor dk;                   // (rows, H, Dn + Dr) strided
  Tensor positions;            // (rows) i32
  Tensor inverse_frequencies;  // (Dr / 2) f32
  float attention_factor = 1;
  bool neighbours = true;

  void validate() const;
  Cost cost() const;
  std::array<Tensor, 2> outputs() const { return {dq, dshared}; }
};
void run(Cpu, Stream& stream, const MlaHeadsGradient& op);
void run(Cuda, Stream& stream, const MlaHeadsGradient& op);

}  // namespace dstrain
