#include "lib/pipeline/stage.h"

#include <algorithm>
#include <utility>

#include "kernels/elementwise.h"

namespace dstrain {

Stage::Stage(StageModel model, Device device, ProcessGroup& tensor, int slots, Index max_rows, const Sizes& sizes)
    : model_(std::move(model)),
      tensor_(tensor),
      first_(model_.numbers.front() < 0),
      last_(model_.head != nullptr),
      scratch_("scratch", device, sizes.scratch),
      boundary_("stage boundary", device, sizes.boundary) {
  for (int i = 0; i < slots; ++i)
    slots_.push_back({.activations = Arena("activations", device, sizes.slot), .saved = {}});
  if (!last_) send_ = boundary_.allocate({max_rows, model_.hidden});
  gradient_ = boundary_.allocate({max_rows, model_.hidden});
}

Tensor Stage::input(int slot, Index rows) {
  Slot& s = slots_.at(static_cast<std::size_t>(slot));
  release(slot);
  s.input = s.activations.allocate({rows, model_.hidden});
  return s.input;
}

Context Stage::context(Stream& stream, Slot& slot, const PassOptions& options) {
  return {.stream = stream,
          .tensor = tensor_,
          .saved = slot.activations,
          .scratch = scratch_,
          .mode = options.mode,
          .write = options.write,
          .seed = options.seed,
          .loss_scale = options.loss_scale,
          .loss = options.loss,
          .cache = options.cache};
}

void Stage::forward(Stream& stream, int slot, const Batch& batch, const PassOptions& options) {
  Slot& s = slots_.at(static_cast<std::size_t>(slot));
  if (first_) release(slot);
  check(first_ || s.input.defined(), "forward of slot {} without its input", slot);
  const ArenaScope scope(scratch_);
  Context c = context(stream, s, options);
  c.branch = scratch_.allocate({batch.rows(), model_.hidden});
  Hidden x{s.input};
  for (const auto& layer : model_.layers) x = layer->forward(c, batch, x, s.saved.emplace_back());
  output_ = x.residual;
  if (last_) return;
  output_ = send_.slice(0, 0, batch.rows());
  if (x.branch.defined())
    launch(stream, Add{.y = output_, .a = x.residual, .b = x.branch});
  else
    launch(stream, Copy{.y = output_, .x = x.residual});
}

void Stage::backward(Stream& stream, int slot, const Batch& batch, const PassOptions& options) {
  Slot& s = slots_.at(static_cast<std::size_t>(slot));
  check(s.saved.size() == model_.layers.size(), "backward of slot {} without its forward", slot);
  Context c = context(stream, s, options);
  Tensor dy = gradient(batch.rows());
  for (std::size_t i = model_.layers.size(); i-- > 0;) dy = model_.layers[i]->backward(c, batch, dy, *s.saved[i]);
  release(slot);
}

void Stage::logits(Stream& stream, const Tensor& normalised, const Tensor& out) {
  check(last_, "logits of a stage without a head");
  Context c = context(stream, slots_.front(), {});
  model_.head->logits(c, normalised, out);
}

void Stage::release(int slot) {
  Slot& s = slots_.at(static_cast<std::size_t>(slot));
  s.saved.clear();
  s.input = {};
  s.activations.release(0);
}

Stage::Sizes Stage::used() const {
  Sizes sizes{.scratch = scratch_.high_water(), .boundary = boundary_.high_water()};
  for (const Slot& s : slots_) sizes.slot = std::max(sizes.slot, s.activations.high_water());
  return sizes;
}

Stage::Sizes Stage::capacities() const {
  return {.slot = slots_.empty() ? 0 : slots_.front().activations.capacity(),
          .scratch = scratch_.capacity(),
          .boundary = boundary_.capacity()};
}

}  // namespace dstrain
