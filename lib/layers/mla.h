#pragma once
// Norm, multi-head latent attention (DeepSeek-AI, "DeepSeek-V2", 2024), output projection. Keys and values come from a
// latent vector of a row, queries directly or from one of their own; the part of a key that carries the position is one
// for all heads. Heads are cut over the tensor group, the latents are whole on every rank.

#include <optional>
#include <vector>

#include "lib/layers/linear.h"
#include "lib/layers/norm.h"

namespace dstrain {

struct MlaSpec {
  Index heads = 0;                         // this rank's
  Index nope = 0;                          // elements of a query's or key's head without position
  Index rope = 0;                          // with it
  Index value = 0;                         // elements of a value's head
  Index cache_slot = 0;                    // index in this stage's KvCache
  float scale = 1;                         // of the scores
  float attention_factor = 1;              // of the rotation's sines and cosines
  bool neighbours = true;                  // which elements are rotated together: kernels/mla.h
  std::vector<float> inverse_frequencies;  // (rope / 2)
};

class Mla final : public Layer {
 public:
  // The way to the queries' latent and its norm; without them `query` reads the normalised input.
  struct QueryLatent {
    Linear down;  // whole
    Norm norm;
  };
  // query: column, (heads * (nope + rope), C or latent). kv_down: whole, rows [latent | shared key (rope)]. kv_up:
  // column, of each head rows [nope | value]. out: row.
  Mla(MlaSpec spec, Norm norm, std::optional<QueryLatent> query_latent, Linear query, Linear kv_down, Norm kv_norm,
      Linear kv_up, Linear out);

  Hidden forward(Context& context, const Batch& batch, const Hidden& x, std::unique_ptr<Saved>& saved) override;
  Tensor backward(Context& context, const Batch& batch, const Tensor& dy, Saved& saved) override;
  void visit(const ParamVisitor& visitor) override;
  void prepare(Arena& constants) override;

 private:
  struct Kept;
  // Gradients of the queries' and keys' inputs, added up in dnorm (rows, C).
  void query_backward(Context& context, const Kept& kept, const Tensor& dq, const Tensor& dnorm) const;
  void kv_backward(Context& context, const Kept& kept, const Tensor& dkv, const Tensor& dshared,
                   const Tensor& dnorm) const;

  MlaSpec spec_;
  Norm norm_;
  std::optional<QueryLatent> query_latent_;
  Linear query_, kv_down_;
  Norm kv_norm_;
  Linear kv_up_, out_;
  Tensor frequencies_;  // (rope / 2) f32 on the stage's device
};

}  // namespace dstrain
