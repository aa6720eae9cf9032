#include "lib/layers/mtp_input.h"

#include <utility>

#include "kernels/embedding.h"

namespace dstrain {

struct MtpInput::Kept final : Saved {
  Tensor embedding;                        // (rows, C)
  Norm::Kept embedding_norm, hidden_norm;  // of it and of what came in
  Tensor both;                             // (rows, 2 C), normalised
};

MtpInput::MtpInput(MtpSpec spec, std::optional<Param> table, const Param* shared, Norm embedding_norm, Norm hidden_norm,
                   Linear join)
    : spec_(spec),
      table_(std::move(table)),
      shared_(shared),
      embedding_norm_(std::move(embedding_norm)),
      hidden_norm_(std::move(hidden_norm)),
      join_(std::move(join)) {}

// A row's target is the token after it.
Tensor MtpInput::tokens(const Batch& batch) const {
  if (spec_.depth == 1) return batch.targets;
  return batch.mtp_targets.slice(0, spec_.depth - 2, spec_.depth - 1).view({batch.rows()});
}

Hidden MtpInput::forward(Context& context, const Batch& batch, const Hidden& x, std::unique_ptr<Saved>& saved) {
  check(context.mode == Mode::train, "tokens further on are predicted in training alone");
  const Index rows = batch.rows(), columns = x.residual.dim(1);
  const auto make = [&](Index n) { return context.saved.allocate({rows, n}, x.residual.dtype); };
  auto kept = std::make_unique<Kept>();
  kept->embedding = make(columns);
  launch(context.stream,
         EmbeddingForward{
             .y = kept->embedding, .tokens = tokens(batch), .table = table().compute, .first_row = spec_.first_row});
  if (context.tensor.size() > 1) context.tensor.all_reduce(context.stream, kept->embedding);
  kept->both = make(2 * columns);
  kept->embedding_norm = embedding_norm_.forward(context, {kept->embedding}, kept->both.slice(1, 0, columns));
  kept->hidden_norm = hidden_norm_.forward(context, x, kept->both.slice(1, columns, 2 * columns));
  const Tensor y = make(columns);
  join_.forward(context, kept->both, y);
  saved = std::move(kept);
  return {y};
}

Tensor MtpInput::backward(Context& context, const Batch& batch, const Tensor& dy, Saved& saved) {
  const Kept& kept = static_cast<Kept&>(saved);
  const ArenaScope scope(context.scratch);
  const Index columns = dy.dim(1);
  const Tensor dboth = context.scratch.allocate(kept.both.shape, dy.dtype);
  join_.backward(context, kept.both, dy, dboth);
  hidden_norm_.backward(context, kept.hidden_norm, dboth.slice(1, columns, 2 * columns), {}, dy);
  const Tensor dembedding = context.scratch.allocate(kept.embedding.shape, dy.dtype);
  embedding_norm_.backward(context, kept.embedding_norm, dboth.slice(1, 0, columns), {}, dembedding);
  launch(context.stream, EmbeddingBackward{.dtable = table().gradient,
                                           .dy = dembedding,
                                           .tokens = tokens(batch),
                                           .first_row = spec_.first_row,
                                           .frozen = spec_.frozen,
                                           .write = spec_.adds ? Write::accumulate : context.write});
  return dy;
}

void MtpInput::visit(const ParamVisitor& visitor) {
  if (table_) visitor(*table_);
  embedding_norm_.visit(visitor);
  hidden_norm_.visit(visitor);
  join_.visit(visitor);
}

}  // namespace dstrain
