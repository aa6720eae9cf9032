#include "lib/layers/loss_head.h"

#include <algorithm>
#include <utility>

#include "kernels/cross_entropy.h"
#include "kernels/elementwise.h"
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

LossHead::LossHead(HeadSpec spec, Norm norm, std::optional<Param> weight, const Param* tied)
    : spec_(spec), norm_(std::move(norm)), weight_(std::move(weight)), tied_(tied) {}

template <class Use>
void LossHead::chunks(Context& context, const Batch& batch, const Tensor& y, Index first, Index last,
                      const Tensor& loss, bool gradient, Use use) const {
  const Index rows = last - first, columns = weight().shape[0], ranks = context.tensor.size(), d = spec_.depth;
  const auto of_depth = [&](const Tensor& t) { return t.slice(0, d - 1, d).view({t.dim(1)}); };
  const Tensor all_targets = d > 0 ? of_depth(batch.mtp_targets) : batch.targets;
  const Tensor all_weights = d > 0 ? of_depth(batch.mtp_weights) : batch.loss_weights;
  const Tensor scale = d > 0 ? context.mtp_loss_scales.slice(0, d - 1, d) : context.loss_scale;
  // Even chunks, in multiples of 128 rows.
  const Index most = std::max(kMinChunkRows, chunk_elements(context.stream) / columns);
  const Index count = (rows + most - 1) / most;
  const Index chunk = ((rows + count - 1) / count + kMinChunkRows - 1) / kMinChunkRows * kMinChunkRows;
  for (Index begin = first; begin < last; begin += chunk) {
    const ArenaScope scope(context.scratch);
    const Index end = std::min(last, begin + chunk), n = end - begin;
    const Tensor logits_chunk = context.scratch.allocate({n, columns}, y.dtype);
    logits(context, y.slice(0, begin, end), logits_chunk);
    const Tensor targets = all_targets.slice(0, begin, end);
    const Tensor weights = all_weights.slice(0, begin, end);
    if (ranks == 1) {
      launch(context.stream, CrossEntropy{.loss = loss,
                                          .logits = logits_chunk,
                                          .targets = targets,
                                          .weights = weights,
                                          .valid_columns = spec_.valid_columns,
                                          .scale = scale,
                                          .gradient = gradient});
      use(begin, end, logits_chunk);
      continue;
    }
    const Tensor all_stats = context.scratch.allocate({ranks, n, 3});
    const Tensor stats = all_stats.slice(0, context.tensor.rank(), context.tensor.rank() + 1).view({n, 3});
    launch(context.stream, CrossEntropyStats{.stats = stats,
                                             .logits = logits_chunk,
                                             .targets = targets,
                                             .first_column = spec_.first_column,
                                             .valid_columns = spec_.valid_columns});
    context.tensor.all_gather(context.stream, all_stats.view({ranks * n * 3}), stats.view({n * 3}));
    launch(context.stream, CrossEntropyFinish{.loss = loss,
                                              .logits = logits_chunk,
                                              .stats = all_stats,
                                              .targets = targets,
                                              .weights = weights,
                                              .first_column = spec_.first_column,
                                              .valid_columns = spec_.valid_columns,
                                              .scale = scale,
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
  const Hidden y{train && spec_.output == HeadOutput::sum ? kept->norm.sum : kept->y};
  if (train) saved = std::move(kept);
  return y;
}

Tensor LossHead::backward(Context& context, const Batch& batch, const Tensor& dy, Saved& saved) {
  const Kept& kept = static_cast<Kept&>(saved);
  const ArenaScope scope(context.scratch);
  const Param& w = weight();
  const Tensor dnorm = context.scratch.allocate(kept.y.shape, kept.y.dtype);
  Write write = spec_.adds ? Write::accumulate : context.write;
  const Index d = spec_.depth;
  const Tensor loss = d > 0 ? context.mtp_losses.slice(0, d - 1, d) : context.loss;
  chunks(context, batch, kept.y, 0, kept.y.dim(0), loss, true, [&](Index begin, Index end, const Tensor& dlogits) {
    launch(context.stream, Matmul{.c = dnorm.slice(0, begin, end), .a = dlogits, .b = w.compute});
    launch(
        context.stream,
        Matmul{.c = w.gradient, .a = dlogits, .b = kept.y.slice(0, begin, end), .transpose_a = true, .write = write});
    write = Write::accumulate;
  });
  if (context.tensor.size() > 1) context.tensor.all_reduce(context.stream, dnorm);
  if (spec_.output == HeadOutput::normalised) launch(context.stream, Add{.y = dnorm, .a = dnorm, .b = dy});
  norm_.backward(context, kept.norm, dnorm, spec_.output == HeadOutput::sum ? dy : Tensor{}, dy);
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
