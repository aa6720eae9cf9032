// What an engine does without training: losses of batches, logits of a step of generation.
#include "kernels/elementwise.h"
#include "lib/core/transfer.h"
#include "lib/train/engine.h"

namespace dstrain {

double Engine::evaluate(std::span<const Batch> micro_batches) {
  const Tensor loss = result_.slice(0, 1, 2);
  launch(stream_, Fill{.y = loss});
  execute(eval_program_, *stage_, *groups_.pipeline, stream_, micro_batches, {.mode = Mode::eval, .loss = loss});
  if (at_.tensor != 0) launch(stream_, Fill{.y = loss});
  if (groups_.replica->size() > 1) groups_.replica->all_reduce(stream_, loss);
  if (groups_.model->size() > 1) groups_.model->all_reduce(stream_, loss);
  double sum = 0;
  download(stream_, &sum, loss);
  stream_.synchronize();
  return sum;
}

std::vector<double> Engine::evaluate_samples(std::span<const Batch> micro_batches) {
  Index own = 0;
  for (const Batch& b : micro_batches) own += b.batch;
  const Index ranks = groups_.replica->size(), first = groups_.replica->rank() * own;
  const Buffer memory("losses of samples", device_, static_cast<std::size_t>(ranks * own) * sizeof(double));
  const Tensor all(memory.data(), DType::f64, device_, {ranks * own});
  launch(stream_, Fill{.y = all});
  execute(eval_program_, *stage_, *groups_.pipeline, stream_, micro_batches,
          {.mode = Mode::eval, .sample_losses = all.slice(0, first, first + own)});
  // Every tensor rank has computed the losses: one of them counts.
  if (at_.tensor != 0) launch(stream_, Fill{.y = all});
  if (ranks > 1) groups_.replica->all_reduce(stream_, all);
  if (groups_.model->size() > 1) groups_.model->all_reduce(stream_, all);
  std::vector<double> losses(static_cast<std::size_t>(ranks * own));
  download(stream_, losses.data(), all);
  stream_.synchronize();
  return losses;
}

void Engine::decode(const Batch& batch, KvCache& cache, const Tensor& logits) {
  const auto read = [&] {
    if (!stage_->model().head) return;
    Tensor last = stage_->output();  // (B * T, C) -> (B, C), every sample's last row
    last.data += static_cast<std::size_t>((batch.length - 1) * last.stride(0)) * size_of(last.dtype);
    last.shape = {batch.batch, last.dim(1)};
    last.strides = {batch.length * last.stride(0), 1};
    stage_->logits(stream_, last, logits);
  };
  execute(decode_program_, *stage_, *groups_.pipeline, stream_, {&batch, 1},
          {.mode = Mode::decode, .cache = &cache, .forward_done = read});
  stream_.synchronize();
}

}  // namespace dstrain
