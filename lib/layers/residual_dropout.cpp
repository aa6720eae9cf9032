#include "lib/layers/residual_dropout.h"

#include "kernels/dropout.h"
#include "lib/layers/attention.h"

namespace dstrain {

void residual_dropout(Context& context, const Batch& batch, const char* place, Index layer, float p, const Tensor& y,
                      const Tensor& x) {
  if (p == 0 || context.mode != Mode::train) return;
  launch(context.stream, Dropout{.y = y,
                                 .x = x,
                                 .sample_ids = batch.row_sample_ids,
                                 .positions = batch.positions,
                                 .key = philox(context.seed, format("dropout.{}.{}", place, layer)),
                                 .p = p,
                                 .first_column = 0,
                                 .columns = x.dim(1)});
}

Tensor residual_dropout_gradient(Context& context, const Batch& batch, const char* place, Index layer, float p,
                                 const Tensor& dy) {
  if (p == 0) return dy;
  const Tensor dx = context.scratch.allocate(dy.shape, dy.dtype);
  residual_dropout(context, batch, place, layer, p, dx, dy);
  return dx;
}

AttentionDropout attention_dropout(const Context& context, const Batch& batch, const AttentionSpec& spec) {
  if (spec.attention_dropout == 0 || context.mode != Mode::train) return {};
  return {.p = spec.attention_dropout,
          .key = philox(context.seed, format("dropout.scores.{}", spec.layer)),
          .sample_ids = batch.sample_ids,
          .first_head = spec.first_head};
}

}  // namespace dstrain
