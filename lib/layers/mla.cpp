#include "lib/layers/mla.h"

#include <utility>

#include "kernels/attention.h"
#include "kernels/mla.h"
#include "lib/core/transfer.h"
#include "lib/layers/attention_views.h"

namespace dstrain {

struct Mla::Kept final : Saved {
  Norm::Kept norm, query_norm, kv_norm;
  Tensor y;                         // (rows, C), normalised input
  Tensor query_down, query_latent;  // (rows, latent), before and after their norm
  Tensor kv_down;                   // (rows, latent + rope)
  Tensor kv_latent;                 // (rows, latent), after the norm
  Tensor q, k;                      // (rows, heads * (nope + rope)), rotated
  Tensor kv;                        // (rows, heads * (nope + value))
  Tensor o;                         // (rows, heads * value)
  Tensor lse;                       // (B, heads, T)
};

Mla::Mla(MlaSpec spec, Norm norm, std::optional<QueryLatent> query_latent, Linear query, Linear kv_down, Norm kv_norm,
         Linear kv_up, Linear out)
    : spec_(std::move(spec)),
      norm_(std::move(norm)),
      query_latent_(std::move(query_latent)),
      query_(std::move(query)),
      kv_down_(std::move(kv_down)),
      kv_norm_(std::move(kv_norm)),
      kv_up_(std::move(kv_up)),
      out_(std::move(out)) {}

void Mla::prepare(Arena& constants) {
  frequencies_ = constants.allocate({static_cast<Index>(spec_.inverse_frequencies.size())});
  upload_now(frequencies_, spec_.inverse_frequencies.data());
}

Hidden Mla::forward(Context& context, const Batch& batch, const Hidden& x, std::unique_ptr<Saved>& saved) {
  const bool train = context.mode == Mode::train;
  const ArenaScope scope(context.scratch);
  Arena& memory = train ? context.saved : context.scratch;
  const DType dtype = x.residual.dtype;
  const Index rows = batch.rows(), b = batch.batch;
  const auto make = [&](Index columns) { return memory.allocate({rows, columns}, dtype); };

  auto kept = std::make_unique<Kept>();
  kept->y = make(x.residual.dim(1));
  kept->norm = norm_.forward(context, x, kept->y);
  Tensor query_input = kept->y;
  if (query_latent_) {
    kept->query_down = make(query_latent_->down.out_features());
    query_latent_->down.forward(context, kept->y, kept->query_down);
    kept->query_latent = make(query_latent_->down.out_features());
    kept->query_norm = query_latent_->norm.forward(context, {kept->query_down}, kept->query_latent);
    query_input = kept->query_latent;
  }
  kept->q = make(query_.out_features());
  query_.forward(context, query_input, kept->q);
  const Index latent = kv_up_.in_features();
  kept->kv_down = make(kv_down_.out_features());
  kv_down_.forward(context, kept->y, kept->kv_down);
  kept->kv_latent = make(latent);
  kept->kv_norm = kv_norm_.forward(context, {kept->kv_down.slice(1, 0, latent)}, kept->kv_latent);
  kept->kv = make(kv_up_.out_features());
  kv_up_.forward(context, kept->kv_latent, kept->kv);

  kept->k = make(query_.out_features());
  const Tensor q = kept->q.split_last(spec_.heads), kv = kept->kv.split_last(spec_.heads);
  launch(context.stream, MlaHeads{.q = q,
                                  .k = kept->k.split_last(spec_.heads),
                                  .kv = kv,
                                  .shared = kept->kv_down.slice(1, latent, latent + spec_.rope),
                                  .positions = batch.positions,
                                  .inverse_frequencies = frequencies_,
                                  .attention_factor = spec_.attention_factor,
                                  .neighbours = spec_.neighbours});
  kept->o = make(spec_.heads * spec_.value);
  kept->lse = memory.allocate({b, spec_.heads, batch.length});
  Tensor k = by_sample(kept->k.split_last(spec_.heads), b);
  Tensor v = by_sample(kv.slice(2, spec_.nope, spec_.nope + spec_.value), b);
  const Index offset = extend_cache(context, batch, spec_.cache_slot, k, v);
  launch(context.stream, AttentionForward{.o = by_sample(kept->o.split_last(spec_.heads), b),
                                          .lse = kept->lse,
                                          .q = by_sample(q, b),
                                          .k = k,
                                          .v = v,
                                          .scale = spec_.scale,
                                          .mask = AttentionMask::causal,
                                          .query_offset = offset,
                                          .first_keys = first_keys(batch)});
  out_.forward(context, kept->o, context.branch);
  const Hidden y{kept->norm.sum, context.branch};
  if (train) saved = std::move(kept);
  return y;
}

Tensor Mla::backward(Context& context, const Batch& batch, const Tensor& dy, Saved& saved) {
  const Kept& kept = static_cast<Kept&>(saved);
  const ArenaScope scope(context.scratch);
  const Index b = batch.batch, heads = spec_.heads, rows = batch.rows();
  const auto make = [&](const Shape& shape) { return context.scratch.allocate(shape, dy.dtype); };
  const Tensor dout = make(kept.o.shape);
  out_.backward(context, kept.o, dy, dout);

  const Tensor dq = make(kept.q.shape), dk = make(kept.k.shape), dkv = make(kept.kv.shape);
  const auto value = [&](const Tensor& t) {
    return by_sample(t.split_last(heads).slice(2, spec_.nope, spec_.nope + spec_.value), b);
  };
  const auto of_heads = [&](const Tensor& t) { return by_sample(t.split_last(heads), b); };
  launch(context.stream, AttentionBackward{.dq = of_heads(dq),
                                           .dk = of_heads(dk),
                                           .dv = value(dkv),
                                           .dout = of_heads(dout),
                                           .o = of_heads(kept.o),
                                           .lse = kept.lse,
                                           .q = of_heads(kept.q),
                                           .k = of_heads(kept.k),
                                           .v = value(kept.kv),
                                           .scale = spec_.scale,
                                           .mask = AttentionMask::causal,
                                           .query_offset = 0,
                                           .first_keys = first_keys(batch)});
  const Tensor dshared = make({rows, spec_.rope});
  launch(context.stream, MlaHeadsGradient{.dq = dq.split_last(heads),
                                          .dkv = dkv.split_last(heads),
                                          .dshared = dshared,
                                          .dk = dk.split_last(heads),
                                          .positions = batch.positions,
                                          .inverse_frequencies = frequencies_,
                                          .attention_factor = spec_.attention_factor,
                                          .neighbours = spec_.neighbours});
  if (context.tensor.size() > 1) context.tensor.all_reduce(context.stream, dshared);  // every rank has its heads' part
  const Tensor dnorm = make(kept.y.shape);
  query_backward(context, kept, dq, dnorm);
  kv_backward(context, kept, dkv, dshared, dnorm);
  norm_.backward(context, kept.norm, dnorm, dy, dy);
  return dy;
}

void Mla::query_backward(Context& context, const Kept& kept, const Tensor& dq, const Tensor& dnorm) const {
  if (!query_latent_) return query_.backward(context, kept.y, dq, dnorm);
  const ArenaScope scope(context.scratch);
  const Tensor dlatent = context.scratch.allocate(kept.query_latent.shape, dq.dtype);
  query_.backward(context, kept.query_latent, dq, dlatent);
  query_latent_->norm.backward(context, kept.query_norm, dlatent, {}, dlatent);
  query_latent_->down.backward(context, kept.y, dlatent, dnorm);
}

void Mla::kv_backward(Context& context, const Kept& kept, const Tensor& dkv, const Tensor& dshared,
                      const Tensor& dnorm) const {
  const ArenaScope scope(context.scratch);
  const Index latent = kept.kv_latent.dim(1);
  const Tensor dlatent = context.scratch.allocate(kept.kv_latent.shape, dkv.dtype);
  kv_up_.backward(context, kept.kv_latent, dkv, dlatent);
  const Tensor ddown = context.scratch.allocate(kept.kv_down.shape, dkv.dtype);
  kv_norm_.backward(context, kept.kv_norm, dlatent, {}, ddown.slice(1, 0, latent));
  launch(context.stream, Copy{.y = ddown.slice(1, latent, ddown.dim(1)), .x = dshared});
  kv_down_.backward(context, kept.y, ddown, dnorm, {}, Write::accumulate);
}

void Mla::visit(const ParamVisitor& visitor) {
  norm_.visit(visitor);
  if (query_latent_) {
    query_latent_->down.visit(visitor);
    query_latent_->norm.visit(visitor);
  }
  query_.visit(visitor);
  kv_down_.visit(visitor);
  kv_norm_.visit(visitor);
  kv_up_.visit(visitor);
  out_.visit(visitor);
}

}  // namespace dstrain
