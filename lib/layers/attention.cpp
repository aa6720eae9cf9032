#include "lib/layers/attention.h"

#include <utility>

#include "kernels/attention.h"
#include "kernels/dropout.h"
#include "kernels/rope.h"
#include "lib/core/transfer.h"
#include "lib/layers/attention_views.h"
#include "lib/layers/residual_dropout.h"

namespace dstrain {

struct Attention::Kept final : Saved {
  Norm::Kept norm;
  Tensor y;    // (rows, C), normalised input
  Tensor qkv;  // (rows, (heads + 2 kv_heads) * head_dim), rotated
  Tensor o;    // (rows, heads * head_dim)
  Tensor lse;  // (B, heads, T)
};

Attention::Attention(AttentionSpec spec, Norm norm, Linear qkv, Linear out)
    : spec_(std::move(spec)), norm_(std::move(norm)), qkv_(std::move(qkv)), out_(std::move(out)) {}

Attention::Heads Attention::split(const Tensor& qkv) const {
  const Index q = spec_.heads * spec_.head_dim, kv = spec_.kv_heads * spec_.head_dim;
  return {qkv.slice(1, 0, q).split_last(spec_.heads), qkv.slice(1, q, q + kv).split_last(spec_.kv_heads),
          qkv.slice(1, q + kv, q + 2 * kv).split_last(spec_.kv_heads)};
}

void Attention::prepare(Arena& constants) {
  const std::vector<float>& f = spec_.inverse_frequencies;
  if (f.empty()) return;
  frequencies_ = constants.allocate({static_cast<Index>(f.size())});
  upload_now(frequencies_, f.data());
}

void Attention::rotate(Context& context, const Batch& batch, const Tensor& qkv, bool backward) const {
  if (!frequencies_.defined()) return;
  const Index heads = spec_.heads + spec_.kv_heads;  // keys follow queries
  const Tensor x = qkv.slice(1, 0, heads * spec_.head_dim).split_last(heads);
  launch(context.stream,
         Rope{.y = x, .x = x, .positions = batch.positions, .inverse_frequencies = frequencies_, .backward = backward});
}

Hidden Attention::forward(Context& context, const Batch& batch, const Hidden& x, std::unique_ptr<Saved>& saved) {
  const bool train = context.mode == Mode::train;
  const ArenaScope scope(context.scratch);
  Arena& memory = train ? context.saved : context.scratch;
  const Index rows = batch.rows(), width = (spec_.heads + 2 * spec_.kv_heads) * spec_.head_dim;

  auto kept = std::make_unique<Kept>();
  kept->y = memory.allocate(x.residual.shape, x.residual.dtype);
  kept->norm = norm_.forward(context, x, kept->y);
  kept->qkv = memory.allocate({rows, width}, x.residual.dtype);
  qkv_.forward(context, kept->y, kept->qkv);
  const Heads heads = split(kept->qkv);
  rotate(context, batch, kept->qkv, false);

  kept->o = memory.allocate({rows, spec_.heads * spec_.head_dim}, x.residual.dtype);
  kept->lse = memory.allocate({batch.batch, spec_.heads, batch.length});
  Tensor k = by_sample(heads.k, batch.batch), v = by_sample(heads.v, batch.batch);
  const Index offset = extend_cache(context, batch, spec_.cache_slot, k, v);
  launch(context.stream, AttentionForward{.o = by_sample(kept->o.split_last(spec_.heads), batch.batch),
                                          .lse = kept->lse,
                                          .q = by_sample(heads.q, batch.batch),
                                          .k = k,
                                          .v = v,
                                          .scale = spec_.scale,
                                          .mask = AttentionMask::causal,
                                          .query_offset = offset,
                                          .first_keys = first_keys(batch),
                                          .dropout = attention_dropout(context, batch, spec_)});
  out_.forward(context, kept->o, context.branch);
  residual_dropout(context, batch, "attention", spec_.layer, spec_.residual_dropout, context.branch, context.branch);
  const Hidden y{kept->norm.sum, context.branch};
  if (train) saved = std::move(kept);
  return y;
}

Tensor Attention::backward(Context& context, const Batch& batch, const Tensor& dy, Saved& saved) {
  const Kept& kept = static_cast<Kept&>(saved);
  const ArenaScope scope(context.scratch);
  const Tensor dbranch =
      residual_dropout_gradient(context, batch, "attention", spec_.layer, spec_.residual_dropout, dy);
  const Tensor dout = context.scratch.allocate(kept.o.shape, kept.o.dtype);
  out_.backward(context, kept.o, dbranch, dout);

  const Tensor dqkv = context.scratch.allocate(kept.qkv.shape, kept.qkv.dtype);
  const Heads heads = split(kept.qkv), gradients = split(dqkv);
  const Index b = batch.batch;
  launch(context.stream, AttentionBackward{.dq = by_sample(gradients.q, b),
                                           .dk = by_sample(gradients.k, b),
                                           .dv = by_sample(gradients.v, b),
                                           .dout = by_sample(dout.split_last(spec_.heads), b),
                                           .o = by_sample(kept.o.split_last(spec_.heads), b),
                                           .lse = kept.lse,
                                           .q = by_sample(heads.q, b),
                                           .k = by_sample(heads.k, b),
                                           .v = by_sample(heads.v, b),
                                           .scale = spec_.scale,
                                           .mask = AttentionMask::causal,
                                           .query_offset = 0,
                                           .first_keys = first_keys(batch),
                                           .dropout = attention_dropout(context, batch, spec_)});
  rotate(context, batch, dqkv, true);
  const Tensor dnorm = context.scratch.allocate(kept.y.shape, kept.y.dtype);
  qkv_.backward(context, kept.y, dqkv, dnorm);
  norm_.backward(context, kept.norm, dnorm, dy, dy);
  return dy;
}

void Attention::visit(const ParamVisitor& visitor) {
  norm_.visit(visitor);
  qkv_.visit(visitor);
  out_.visit(visitor);
}

}  // namespace dstrain
