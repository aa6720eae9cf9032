#include "lib/layers/embedding.h"

#include <utility>

#include "kernels/embedding.h"
#include "lib/layers/residual_dropout.h"

namespace dstrain {

Embedding::Embedding(Param table, Index first_row, Index frozen, bool adds, std::optional<Param> positions,
                     float dropout)
    : table_(std::move(table)),
      first_row_(first_row),
      frozen_(frozen),
      adds_(adds),
      positions_(std::move(positions)),
      dropout_(dropout) {}

Hidden Embedding::forward(Context& context, const Batch& batch, const Hidden&, std::unique_ptr<Saved>& saved) {
  const Tensor y = context.saved.allocate({batch.rows(), table_.shape[1]}, table_.compute.dtype);
  launch(context.stream,
         EmbeddingForward{.y = y, .tokens = batch.tokens, .table = table_.compute, .first_row = first_row_});
  if (context.tensor.size() > 1) context.tensor.all_reduce(context.stream, y);
  if (positions_)
    launch(
        context.stream,
        EmbeddingForward{.y = y, .tokens = batch.positions, .table = positions_->compute, .write = Write::accumulate});
  residual_dropout(context, batch, "embedding", 0, dropout_, y, y);
  saved = std::make_unique<Saved>();
  return {y};
}

Tensor Embedding::backward(Context& context, const Batch& batch, const Tensor& dy, Saved&) {
  const ArenaScope scope(context.scratch);
  const Tensor dx = residual_dropout_gradient(context, batch, "embedding", 0, dropout_, dy);
  launch(context.stream, EmbeddingBackward{.dtable = table_.gradient,
                                           .dy = dx,
                                           .tokens = batch.tokens,
                                           .first_row = first_row_,
                                           .frozen = frozen_,
                                           .write = adds_ ? Write::accumulate : context.write});
  if (positions_)
    launch(
        context.stream,
        EmbeddingBackward{.dtable = positions_->gradient, .dy = dx, .tokens = batch.positions, .write = context.write});
  return {};
}

void Embedding::visit(const ParamVisitor& visitor) {
  visitor(table_);
  if (positions_) visitor(*positions_);
}

}  // namespace dstrain
