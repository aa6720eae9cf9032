#include "lib/pipeline/stage.h"

#include <algorithm>
#include <utility>

#include "kernels/elementwise.h"
#include "lib/core/transfer.h"

namespace dstrain {

Stage::Stage(StageModel model, Device device, Device target, ProcessGroup& tensor, int slots, Index max_rows,
             DType activations, const Sizes& sizes, bool training, ExpertExchange* experts)
    : model_(std::move(model)),
      device_(device),
      target_(target),
      tensor_(tensor),
      experts_(experts),
      first_(model_.numbers.front() < 0),
      last_(model_.head != nullptr),
      activations_(activations),
      scratch_("scratch", device, sizes.scratch),
      boundary_("stage boundary", device, sizes.boundary),
      constants_("constants", device, sizes.constants) {
  for (int i = 0; i < slots; ++i)
    slots_.push_back({.activations = Arena("activations", device, sizes.slot),
                      .batch_memory = Arena("device batches", device, sizes.batch)});
  if (!last_) send_ = boundary_.allocate({max_rows, model_.hidden}, activations_);
  if (training) gradient_ = boundary_.allocate({max_rows, model_.hidden}, activations_);
  for (const auto& layer : model_.layers) layer->prepare(constants_);
}

Tensor Stage::input(int slot, Index rows) {
  Slot& s = slots_.at(static_cast<std::size_t>(slot));
  release(slot);
  s.input = s.activations.allocate({rows, model_.hidden}, activations_);
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
          .cache = options.cache,
          .experts = experts_,
          .mtp_loss_scales = options.mtp_loss_scales,
          .mtp_losses = options.mtp_losses,
          .mtp_share = options.mtp_share,
          .sample_share = options.sample_share};
}

const Batch& Stage::place(Stream& stream, Slot& slot, const Batch& batch) {
  slot.batch = batch;
  if (model_.main_layers == model_.layers.size()) slot.batch.mtp_targets = slot.batch.mtp_weights = {};
  if (target_ != Device::cuda) return slot.batch;
  slot.batch_memory.release(0);
  Batch& b = slot.batch;
  for (Tensor* t : {&b.tokens, &b.targets, &b.positions, &b.sample_ids, &b.row_sample_ids, &b.loss_weights,
                    &b.mtp_targets, &b.mtp_weights, &b.first_keys}) {
    if (!t->defined()) continue;
    const void* const from = t->data;
    *t = slot.batch_memory.allocate(t->shape, t->dtype);
    upload(stream, *t, from);
  }
  return slot.batch;
}

bool Stage::replay(Stream& stream, const Key& key, const PassOptions& options, const std::function<void()>& body) {
  if (!options.graphs || device_ != Device::cuda || options.mode != Mode::train) {
    body();
    return false;
  }
  // The first time libraries make their plans, which cannot be recorded.
  Recorded& r = recorded_[key];
  if (r.met++ == 0) {
    body();
    return false;
  }
  const bool had = r.graph.defined();
  if (!had) {
    gpu::Graph::begin(stream.queue());
    try {
      body();
      r.graph = gpu::Graph::end(stream.queue());
    } catch (...) {
      gpu::Graph::abandon(stream.queue());
      throw;
    }
  }
  r.graph.launch(stream.queue());
  return had;
}

void Stage::forward(Stream& stream, int slot, const Batch& batch, const PassOptions& options) {
  Slot& s = slots_.at(static_cast<std::size_t>(slot));
  if (first_) release(slot);
  check(first_ || s.input.defined(), "forward of slot {} without its input", slot);
  place(stream, s, batch);
  const Key key{false, slot, batch.rows(), false, false, 0.0f};
  s.own.clear();
  s.saved = &s.own;
  const bool replayed = replay(stream, key, options, [&] { run_forward(stream, s, options); });
  const auto found = recorded_.find(key);
  if (found == recorded_.end() || !found->second.graph.defined()) return;
  // What a recorded forward keeps stays valid: every replay writes to the same places.
  Recorded& r = found->second;
  if (!replayed) {
    r.saved = std::move(s.own);
    r.mark = s.activations.mark();
    r.output = output_;
  } else {
    s.activations.restore(r.mark);
    output_ = r.output;
  }
  s.saved = &r.saved;
}

void Stage::run_forward(Stream& stream, Slot& s, const PassOptions& options) {
  const ArenaScope scope(scratch_);
  Context c = context(stream, s, options);
  const Batch& batch = s.batch;
  c.branch = scratch_.allocate({batch.rows(), model_.hidden}, activations_);
  Hidden x{s.input};
  const std::size_t layers = c.mode == Mode::train ? model_.layers.size() : model_.main_layers;
  for (std::size_t i = 0; i < layers; ++i) {
    stream.set_place(
        {.layer = static_cast<int>(model_.numbers[i]), .micro_batch = stream.place().micro_batch, .phase = "forward"});
    const gpu::Range range("layer forward");
    x = model_.layers[i]->forward(c, batch, x, s.saved->emplace_back());
  }
  output_ = x.residual;
  if (last_) return;
  output_ = send_.slice(0, 0, batch.rows());
  if (x.branch.defined())
    launch(stream, Add{.y = output_, .a = x.residual, .b = x.branch});
  else
    launch(stream, Copy{.y = output_, .x = x.residual});
}

void Stage::backward(Stream& stream, int slot, const PassOptions& options) {
  Slot& s = slots_.at(static_cast<std::size_t>(slot));
  check(s.saved && s.saved->size() == model_.layers.size(), "backward of slot {} without its forward", slot);
  const Key key{true,
                slot,
                s.batch.rows(),
                options.write == Write::accumulate,
                static_cast<bool>(options.layer_done),
                options.mtp_share};
  replay(stream, key, options, [&] { run_backward(stream, s, options); });
  release(slot);
}

void Stage::run_backward(Stream& stream, Slot& s, const PassOptions& options) {
  Context c = context(stream, s, options);
  Tensor dy = gradient(s.batch.rows());
  if (options.layer_done) stream.reserve_multiprocessors(options.reserved_multiprocessors);
  for (std::size_t i = model_.layers.size(); i-- > 0;) {
    stream.set_place(
        {.layer = static_cast<int>(model_.numbers[i]), .micro_batch = stream.place().micro_batch, .phase = "backward"});
    const gpu::Range range("layer backward");
    dy = model_.layers[i]->backward(c, s.batch, dy, *(*s.saved)[i]);
    if (options.layer_done) options.layer_done(i);
  }
  stream.reserve_multiprocessors(0);
}

void Stage::logits(Stream& stream, const Tensor& normalised, const Tensor& out) {
  check(last_, "logits of a stage without a head");
  Context c = context(stream, slots_.front(), {});
  model_.head->logits(c, normalised, out);
}

void Stage::release(int slot) {
  Slot& s = slots_.at(static_cast<std::size_t>(slot));
  s.own.clear();
  s.saved = nullptr;
  s.input = {};
  s.activations.release(0);
}

Stage::Sizes Stage::used() const {
  Sizes sizes{
      .scratch = scratch_.high_water(), .boundary = boundary_.high_water(), .constants = constants_.high_water()};
  for (const Slot& s : slots_) {
    sizes.slot = std::max(sizes.slot, s.activations.high_water());
    sizes.batch = std::max(sizes.batch, s.batch_memory.high_water());
  }
  return sizes;
}

Stage::Sizes Stage::capacities() const {
  return {.slot = slots_.empty() ? 0 : slots_.front().activations.capacity(),
          .scratch = scratch_.capacity(),
          .boundary = boundary_.capacity(),
          .batch = slots_.empty() ? 0 : slots_.front().batch_memory.capacity(),
          .constants = constants_.capacity()};
}

}  // namespace dstrain
