#include "lib/layers/loss_head.h"

#include <algorithm>
#include <utility>

#include "kernels/cross_entropy.h"
#include "kernels/matmul.h"

namespace dstrain {

struct LossHead::Kept final : Saved {
  Norm::Kept norm;
  Tensor y;  // (rows, C)
};

namespace {
// Logits of a chunk. On a CPU they stay in the cache (8 MiB of float32); on a GPU products of a few thousand rows are
// needed to be fast.
Index chunk_elements(const Stream& stream) { return Index{1} << (stream.target() == Device::cuda ? 28 : 21); }
constexpr Index kMinChunkRows = 128;
}  // namespace

LossHead::LossHead(Norm norm, std::optional<Param> weight, const Param* tied, Index first_column, Index valid_columns)
    : norm_(std::move(norm)),
      weight_(std::move(weight)),
      tied_(tied),
      first_column_(first_column),
      valid_columns_(valid_columns) {}

template <class Use>
void LossHead::chunks(Context& context, const Batch& batch, const Tensor& y, Index first, Index last,
                      const Tensor& loss, bool gradient, Use use) const {
  const Index rows = last - first, columns = weight().shape[0], ranks = context.tensor.size();
  // Even chunks, in multiples of 128 rows.
  const Index most = std::max(kMinChunkRows, chunk_elements(context.stream) / columns);
  const Index count = (rows + most - 1) / most;
  const Index chunk = ((rows + count - 1) / count + kMinChunkRows - 1) / kMinChunkRows * kMinChunkRows;
  for (Index begin = first; begin < last; begin += chunk) {
    const ArenaScope scope(context.scratch);
    const Index end = std::min(last, begin + chunk), n = end - begin;
    const Tensor logits_chunk = context.scratch.allocate({n, columns}, y.dtype);
    logits(context, y.slice(0, begin, end), logits_chunk);
    const Tensor targets = batch.targets.slice(0, begin, end);
    const Tensor weights = batch.loss_weights.slice(0, begin, end);
    if (ranks == 1) {
      launch(context.stream, CrossEntropy{.loss = loss,
                                          .logits = logits_chunk,
                                          .targets = targets,
                                          .weights = weights,
                                          .valid_columns = valid_columns_,
                                          .scale = context.loss_scale,
                                          .gradient = gradient});
      use(begin, end, logits_chunk);
      continue;
    }
    const Tensor all_stats = context.scratch.allocate({ranks, n, 3});
    const Tensor stats = all_stats.slice(0, context.tensor.rank(), context.tensor.rank() + 1).view({n, 3});
    launch(context.stream, CrossEntropyStats{.stats = stats,
                                             .logits = logits_chunk,
                                             .targets = targets,
                                             .first_column = first_column_,
                                             .valid_columns = valid_columns_});
    context.tensor.all_gather(context.stream, all_stats.view({ranks * n * 3}), stats.view({n * 3}));
    launch(context.stream, CrossEntropyFinish{.loss = loss,
                                              .logits = logits_chunk,
                                              .stats = all_stats,
                                              .targets = targets,
                                              .weights = weights,
                                              .first_column = first_column_,
                                              .valid_columns = valid_columns_,
                                              .scale = context.loss_scale,
                                              .gradient = gradient});
    use(begin, end, logits_chunk);
  }
}

Hidden LossHead::forward(Context& context, const Batch& batch, const Hidden& x, std::unique_ptr<Saved>& saved) {
  const bool train = context.mode == Mode::train;
  auto kept = std::make_unique<Kept>();
  // The normalised rows outlive this call in every mode: decode reads them, train keeps them.
  kept->y = context.saved.allocate(x.residual.shape, x.residual.dtype);
  const ArenaScope scope(context.scratch);
  kept->norm = norm_.forward(context, x, kept->y);
  if (context.mode == Mode::eval) {
    const Index parts = context.loss.dim(0), rows = batch.rows() / parts;
    for (Index i = 0; i < parts; ++i)
      chunks(context, batch, kept->y, i * rows, (i + 1) * rows, context.loss.slice(0, i, i + 1), false,
             [](Index, Index, const Tensor&) {});
  }
  const Hidden y{kept->y};
  if (train) saved = std::move(kept);
  return y;
}

Tensor LossHead::backward(Context& context, const Batch& batch, const Tensor& dy, Saved& saved) {
  const Kept& kept = static_cast<Kept&>(saved);
  const ArenaScope scope(context.scratch);
  const Param& w = weight();
  const Tensor dnorm = context.scratch.allocate(kept.y.shape, kept.y.dtype);
  Write write = context.write;
  chunks(
      context, batch, kept.y, 0, kept.y.dim(0), context.loss, true, [&](Index begin, Index end, const Tensor& dlogits) {
        launch(context.stream, Matmul{.c = dnorm.slice(0, begin, end), .a = dlogits, .b = w.compute});
        launch(
            context.stream,
            Matmul{
                .c = w.gradient, .a = dlogits, .b = kept.y.slice(0, begin, end), .transpose_a = true, .write = write});
        write = Write::accumulate;
      });
  if (context.tensor.size() > 1) context.tensor.all_reduce(context.stream, dnorm);
  norm_.backward(context, kept.norm, dnorm, {}, dy);
  return dy;
}

void LossHead::logits(Context& context, const Tensor& normalised, const Tensor& out) const {
  launch(context.stream, Matmul{.c = out, .a = normalised, .b = weight().compute, .transpose_b = true});
}

void LossHead::visit(const ParamVisitor& visitor) {
  norm_.visit(visitor);
  if (weight_) visitor(*weight_);
}

}  // namespace dstrain
