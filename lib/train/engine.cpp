#include "lib/train/engine.h"

#include <algorithm>
#include <cmath>
#include <exception>
#include <limits>
#include <utility>

#include "kernels/checksum.h"
#include "kernels/elementwise.h"
#include "kernels/gradient_norm.h"
#include "lib/core/clock.h"
#include "lib/core/rng.h"
#include "lib/core/transfer.h"
#include "lib/layers/host_batch.h"

namespace dstrain {

namespace {

constexpr std::size_t kScalarBytes = 6 * Arena::kAlign;

WeightFormat weight_format(const PrecisionConfig& p, EngineUse use) {
  return {.compute = p.compute == "bfloat16" ? DType::bf16 : DType::f32,
          .split = p.master == "split",
          .training = use == EngineUse::training,
          .bf16_gradients = p.gradients == "bfloat16"};
}

}  // namespace

Engine::Engine(const Config& config, World& world, const Mesh& mesh, Device device, Device target, int threads,
               const EngineSizes& sizes, EngineUse use)
    : config_(config),
      world_(world),
      mesh_(mesh),
      at_(mesh.coordinates(world.rank())),
      device_(device),
      target_(target),
      pool_(device == Device::dry ? nullptr : std::make_unique<ThreadPool>(threads)),
      workspace_("workspace", device, sizes.workspace),
      stream_(device, target, nullptr, nullptr, nullptr),
      groups_(make_groups(world, mesh, Poster::compute, config.model.num_key_value_heads)),
      scalars_("scalars", device, kScalarBytes),
      train_program_(train_program(config)),
      single_program_(single_program(config, config.parallel.schedule)),
      eval_program_(job_program(config, "forward_only")),
      decode_program_(single_program(config, "forward_only")),
      use_(use),
      mtp_depths_(use == EngineUse::training ? config.model.num_nextn_predict_layers : 0),
      mtp_loss_weight_(config.mtp.loss_weight) {
  if (device_ == Device::cuda) queue_.emplace();
  stream_ = Stream(device, target, pool_.get(), &workspace_, nullptr, queue_ ? &*queue_ : nullptr);
  stream_.set_settings(compute_settings(config_));
  const StepShape batches = step_shape(config_);
  const bool training = use_ == EngineUse::training;
  const int slots = use_ == EngineUse::generation ? slot_count(decode_program_, at_.pipeline)
                    : training
                        ? std::max(slot_count(train_program_, at_.pipeline), slot_count(eval_program_, at_.pipeline))
                        : slot_count(eval_program_, at_.pipeline);
  const WeightFormat format = weight_format(config_.precision, use_);
  if (groups_.expert->size() > 1) {
    if (device_ == Device::cuda && groups_.expert->on_device()) {
      expert_queue_.emplace(gpu::Queue::Priority::high);
      expert_stream_.emplace(device, target, pool_.get(), nullptr, nullptr, &*expert_queue_);
    }
    experts_ =
        std::make_unique<ExpertExchange>(*groups_.expert, device_,
                                         ExpertExchange::Sizes{.experts = config_.model.n_routed_experts,
                                                               .chosen = config_.model.num_experts_per_tok,
                                                               .max_rows = batches.micro_batch_size * batches.length,
                                                               .receive_factor = config_.moe.receive_factor},
                                         expert_stream_ ? &*expert_stream_ : nullptr);
  }
  stage_ = std::make_unique<Stage>(build_stage(config_.model, stage_place(config_, at_, mtp_depths_)), device, target,
                                   *groups_.tensor, slots, batches.micro_batch_size * batches.length, format.compute,
                                   sizes.stage, training, experts_.get());
  params_ = std::make_unique<ParamArena>(stage_->model(), device, config_.parallel.bucket_bytes, format);
  if (training)
    optimizer_ = std::make_unique<Optimizer>(
        config_.optimizer, *params_, scalars_,
        Optimizer::Halt{.nonfinite = config_.guard.on_nonfinite != "skip", .beyond = config_.guard.on_spike != "skip"});
  result_ = scalars_.allocate({4 + mtp_depths_}, DType::f64);
  sums_ = scalars_.allocate({kRankSums}, DType::i64);
  loss_scales_ = scalars_.allocate({1 + mtp_depths_});
  static_assert(sizeof(Exchange) <= 256);
  ring_ = device_ == Device::cuda ? Buffer::pinned("step exchange", kRing * 256)
                                  : Buffer("step exchange", Device::cpu, kRing * 256);
  if (training) {
    const std::size_t all = static_cast<std::size_t>(world.size()) * kRankSums * sizeof(std::int64_t);
    all_sums_ = Buffer("checksums", device, all);
    sums_ring_ = device_ == Device::cuda ? Buffer::pinned("checksums", kRing * all)
                                         : Buffer("checksums", Device::cpu, kRing * all);
  }
  if (training) find_experts();
  const DebugConfig& debug = config_.debug;
  if (device_ != Device::dry && (debug.blocking || debug.check_finite)) {
    debug_ = std::make_unique<DebugObserver>(
        DebugObserver::Options{.blocking = debug.blocking, .check_finite = debug.check_finite, .rank = world.rank()},
        device_);
    stream_.set_observer(debug_.get());
  }
  if (device_ != Device::cuda || !training) return;
  for (std::size_t i = 0; i < kRing; ++i) {
    done_.emplace_back();
    check_begin_.emplace_back(gpu::Event::Timing::on);
    check_end_.emplace_back(gpu::Event::Timing::on);
  }
  check_recordable();
  if (groups_.replica->size() == 1 || !groups_.replica->on_device()) return;
  gradient_queue_.emplace(gpu::Queue::Priority::high);
  Groups gradient_groups = make_groups(world, mesh, Poster::gradients);
  gradient_group_ = std::move(gradient_groups.replica);
  expert_gradient_group_ = std::move(gradient_groups.expert_replica);
  gradient_stream_.emplace(device, target, pool_.get(), nullptr, nullptr, &*gradient_queue_);
  layer_event_.emplace();
  reduced_event_.emplace();
  layer_done_ = [this](std::size_t layer) { reduce_ready(layer); };
}

Engine::~Engine() {
  if (device_ != Device::cuda || std::uncaught_exceptions() == 0) return;
  try {
    world_.interrupt(format("rank {} failed", world_.rank()));
  } catch (...) {  // what unwinds says more
  }
}

// Every stage's mixtures of experts follow from the config alone.
void Engine::find_experts() {
  const ModelConfig& m = config_.model;
  const auto counted = static_cast<Index>(params_->counted().size());
  if (!m.deepseek() || m.first_k_dense_replace >= m.num_hidden_layers + mtp_depths_) return;
  const auto stages = partition(m, config_.training.sequence_length, static_cast<int>(config_.parallel.pipeline));
  for (std::size_t stage = 0; stage < stages.size(); ++stage) {
    const bool last = stage + 1 == stages.size();
    if (static_cast<int>(stage) == at_.pipeline) expert_rows_before_ = static_cast<Index>(expert_layers_.size());
    for (Index layer = stages[stage].end + (last ? mtp_depths_ : 0); layer-- > stages[stage].begin;)
      if (layer >= m.first_k_dense_replace)
        expert_layers_.push_back(static_cast<std::size_t>(layer - m.first_k_dense_replace));
  }
  const auto rows = static_cast<Index>(expert_layers_.size());
  expert_stride_ = counted > 0 ? params_->flat_biases().size() / counted : (m.n_routed_experts + 63) / 64 * 64;
  const auto bytes = static_cast<std::size_t>(rows * expert_stride_) * sizeof(float);
  expert_tokens_ = Buffer("experts' tokens", device_, bytes);
  expert_ring_ = device_ == Device::cuda ? Buffer::pinned("experts' tokens", kRing * bytes)
                                         : Buffer("experts' tokens", Device::cpu, kRing * bytes);
}

void Engine::enqueue_expert_tokens() {
  if (expert_layers_.empty()) return;
  const auto rows = static_cast<Index>(expert_layers_.size());
  const Tensor all(expert_tokens_.data(), DType::f32, device_, {rows * expert_stride_});
  const FlatRange& own = params_->flat_biases();
  // Every tensor rank counts the same tokens.
  if (own.size() < all.dim(0) || at_.tensor != 0) launch(stream_, Fill{.y = all});
  if (own.size() > 0 && at_.tensor == 0) {
    const Index begin = expert_rows_before_ * expert_stride_;
    launch(stream_, Copy{.y = all.slice(0, begin, begin + own.size()), .x = params_->gradient(own)});
  }
  if (groups_.model->size() > 1) groups_.model->all_reduce(stream_, all);
  to_host(expert_tokens_of(enqueued_), all);
}

// Passes can be recorded when every group that they use enqueues its work.
void Engine::check_recordable() {
  const bool staged = groups_.tensor->size() > 1 && !groups_.tensor->on_device();
  require(
      config_.cuda.graphs != "always" || !staged, ExitCode::device,
      "cuda.graphs: always, but ranks of the tensor group share a GPU: their messages go through the host and cannot "
      "be recorded");
  require(config_.cuda.graphs != "always" || !debug_, ExitCode::usage,
          "cuda.graphs: always, but debug.blocking and debug.check_finite look at every op");
  require(
      config_.cuda.graphs != "always" || !experts_, ExitCode::usage,
      "cuda.graphs: always, but parallel.expert: {}: the numbers of rows for experts on other ranks pass through the "
      "host in every layer",
      config_.parallel.expert);
  graphs_ = config_.cuda.graphs != "never" && !staged && !debug_ && !experts_;
}

std::string Engine::tune(const std::string& known) {
  if (device_ != Device::cuda) return "";
  check(use_ == EngineUse::training, "an engine that does not train runs no training step");
  ComputeSettings settings = compute_settings(config_);
  settings.tuned = known;
  settings.tune = config_.cuda.tune;
  stream_.set_settings(settings);
  const StepShape shape = step_shape(config_);
  const Index rows = shape.micro_batch_size * shape.length;
  HostBatch host(shape.micro_batch_size, shape.length);
  const Philox generator = philox(1, "tuning tokens");
  for (std::size_t i = 0; i < host.tokens.size(); ++i) {
    host.tokens[i] =
        static_cast<std::int32_t>(generator(0, i)[0] % static_cast<std::uint32_t>(config_.model.vocab_size));
    host.targets[i] = host.tokens[i];
    host.loss_weights[i] = 1.0f;
  }
  host.predict_further(mtp_depths_);
  // With an operand for every key to be seen, so that the kernels are those of the job's own batches.
  if (config_.data.document_mask) host.first_keys.resize(host.tokens.size());
  const Batch batch = host.view();
  const std::vector<Batch> batches(static_cast<std::size_t>(shape.micro_batches), batch);
  const bool graphs = std::exchange(graphs_, false);
  // Twice at most: an accumulating product is met with the second micro-batch.
  gradients(batches, {static_cast<double>(rows * shape.micro_batches), mtp_tokens(batches)}, false);
  graphs_ = graphs;
  settings.tune = false;
  stream_.set_settings(settings);
  clear_gradients();
  stream_.synchronize();
  return stream_.kernel_state() ? stream_.kernel_state()->tuned() : "";
}

void Engine::reduce_ready(std::size_t layer) {
  bool any = false;
  for (const ParamArena::Bucket& b : params_->buckets()) {
    ProcessGroup& group = b.spread ? *expert_gradient_group_ : *gradient_group_;
    if (!b.overlaps() || b.ready_layer != layer || group.size() == 1) continue;
    if (!any) {
      layer_event_->record(*queue_);
      gradient_queue_->wait(*layer_event_);
      any = true;
    }
    group.all_reduce(*gradient_stream_, params_->gradient(b.range));
  }
  if (layer > 0) return;
  reduced_event_->record(*gradient_queue_);
  queue_->wait(*reduced_event_);
}

void Engine::sum_bits(std::size_t which, std::span<const Tensor> tensors) {
  const auto at = static_cast<Index>(which);
  for (const Tensor& t : tensors)
    if (t.defined() && t.numel() > 0) launch(stream_, Checksum{.result = sums_.slice(0, at, at + 1), .x = t});
}

void Engine::run_checks(std::span<const Batch> micro_batches, const StepChecks& checks) {
  const std::size_t at = enqueued_ % kRing;
  checked_[at] = checks.any();
  check_seconds_[at] = 0;
  if (!checks.any()) return;
  const bool timed = device_ == Device::cuda;
  if (timed) check_begin_[at].record(*queue_);
  const double begin = system_clock().now();
  launch(stream_, Fill{.y = Tensor(sums_.data, DType::f64, device_, {kRankSums})});  // zero bits are zero in both
  stream_.set_place({.phase = "check"});
  const Tensor &compute = params_->compute(), &master = params_->master();
  if (checks.replicas) {
    const FlatRange& spread = params_->spread();
    for (const Tensor& flat : {compute, master.data == compute.data ? Tensor{} : master, params_->low(),
                               params_->exp_avg(), params_->exp_avg_sq()}) {
      if (!flat.defined()) continue;
      if (spread.size() == 0) {
        sum_bits(2, std::array{flat});
        continue;
      }
      sum_bits(2, std::array{flat.slice(0, 0, spread.begin), flat.slice(0, spread.end, flat.dim(0))});
      sum_bits(3, std::array{flat.slice(0, spread.begin, spread.end)});
    }
    if (compute.dtype == DType::bf16) sum_bits(2, std::array{params_->biases()});
  }
  if (checks.recompute) {
    execute(single_program_, *stage_, *groups_.pipeline, stream_, micro_batches.first(1), train_options(micro_batches));
    sum_bits(0, params_->gradients());
  }
  if (timed)
    check_end_[at].record(*queue_);
  else
    check_seconds_[at] = system_clock().now() - begin;
}

std::vector<float> Engine::loss_scales(const ValidTokens& valid_tokens) const {
  check(mtp_depths_ == 0 || static_cast<Index>(valid_tokens.mtp.size()) == mtp_depths_,
        "valid tokens of {} depths of multi-token prediction, the model has {}", valid_tokens.mtp.size(), mtp_depths_);
  std::vector<float> scales{static_cast<float>(1.0 / valid_tokens.next)};
  for (Index k = 0; k < mtp_depths_; ++k) {
    const double tokens = valid_tokens.mtp[static_cast<std::size_t>(k)];  // none at all in very short sequences
    scales.push_back(tokens > 0 ? static_cast<float>(mtp_loss_weight_ / (static_cast<double>(mtp_depths_) * tokens))
                                : 0.0f);
  }
  return scales;
}

PassOptions Engine::train_options(std::span<const Batch> micro_batches) const {
  Index samples = 0;
  for (const Batch& b : micro_batches) samples += b.batch;
  const auto depths = static_cast<double>(std::max<Index>(1, mtp_depths_));
  return {.mode = Mode::train,
          .seed = config_.run.seed,
          .loss_scale = loss_scales_.slice(0, 0, 1),
          .loss = result_.slice(0, 1, 2),
          .mtp_loss_scales = loss_scales_.slice(0, 1, 1 + mtp_depths_),
          .mtp_losses = result_.slice(0, 2, 2 + mtp_depths_),
          .mtp_share = mtp_depths_ > 0 ? static_cast<float>(mtp_loss_weight_ / depths) : 0.0f,
          .sample_share = 1.0f / static_cast<float>(samples * groups_.replica->size())};
}

void Engine::enqueue_gradients(std::span<const Batch> micro_batches, const ValidTokens& valid_tokens, double lr,
                               bool stop, const StepLimits& limits, const StepChecks& checks) {
  check(use_ == EngineUse::training, "a step of an engine that does not train");
  check(enqueued_ - taken_ < kRing - 1, "{} steps wait for their result to be taken", enqueued_ - taken_);
  Exchange& ring = exchange(enqueued_);
  valid_tokens_[enqueued_ % kRing] = valid_tokens;
  ring = {.vote = stop ? 1.0 : 0.0, .lr = static_cast<float>(lr)};
  std::ranges::copy(loss_scales(valid_tokens), ring.loss_scales);
  ring.limits[0] = limits.grad_norm * limits.grad_norm;
  ring.limits[1] = limits.loss * valid_tokens.next;
  const Index end = result_.dim(0);
  const Tensor norm = result_.slice(0, 0, 1), votes = result_.slice(0, end - 2, end - 1),
               bad = result_.slice(0, end - 1, end);
  upload(stream_, votes, &ring.vote);
  upload(stream_, optimizer_->lr(), &ring.lr);
  upload(stream_, loss_scales_, ring.loss_scales);
  upload(stream_, optimizer_->limits(), ring.limits);
  run_checks(micro_batches, checks);
  optimizer_->check_weights(stream_, bad);
  launch(stream_, Fill{.y = losses()});
  PassOptions options = train_options(micro_batches);
  options.graphs = graphs_;
  options.layer_done = layer_done_;
  options.reserved_multiprocessors = kGradientBlocks;
  bool overlapped = overlaps();
  if (checks.recompute) {
    options.backward_done = [&, first = true]() mutable {
      if (!std::exchange(first, false)) return;
      const double begin = system_clock().now();
      sum_bits(1, params_->gradients());
      check_seconds_[enqueued_ % kRing] += system_clock().now() - begin;
    };
    // Gradients that were reduced beside the only backward would not be this rank's own.
    if (micro_batches.size() == 1) options.layer_done = {}, overlapped = false;
  }
  execute(train_program_, *stage_, *groups_.pipeline, stream_, micro_batches, options);
  stream_.set_place({.phase = "reduce"});
  params_->reduce(stream_, groups_, overlapped);
  // With spread experts one holder of each parameter counts it; without, every data rank counts all that it has.
  const int block = at_.data / static_cast<int>(config_.parallel.expert);
  const bool first = groups_.replica->rank() == 0, first_block = block == 0 && at_.context == 0;
  optimizer_->squared_norm(stream_, norm, bad, !experts_ || first, !experts_ || first_block);
  // Every tensor rank has computed the losses: one of them counts.
  if (at_.tensor != 0) launch(stream_, Fill{.y = losses()});
  if (groups_.replica->size() > 1) groups_.replica->all_reduce(stream_, result_.slice(0, experts_ ? 0 : 1, end));
  if (groups_.model->size() > 1) groups_.model->all_reduce(stream_, result_);
  enqueue_expert_tokens();
  if (!checks.any()) return;
  const Index n = static_cast<Index>(kRankSums) * world_.size();
  const Tensor all(all_sums_.data(), DType::i64, device_, {n});
  groups_.control->all_gather(stream_, all, sums_);
  to_host(sums_of(enqueued_), all);
}

void Engine::local_gradients(std::span<const Batch> micro_batches, const ValidTokens& valid_tokens) {
  stream_.synchronize();
  upload_now(loss_scales_, loss_scales(valid_tokens).data());
  launch(stream_, Fill{.y = losses()});
  execute(train_program_, *stage_, *groups_.pipeline, stream_, micro_batches, train_options(micro_batches));
  stream_.synchronize();
}

void Engine::to_host(void* to, const Tensor& from) {
  if constexpr (build::cuda) {
    if (device_ == Device::cuda) {
      // Not launched: what it copies was looked at where it was made.
      run(Cuda{}, stream_, Copy{.y = Tensor(static_cast<std::byte*>(to), from.dtype, device_, from.shape), .x = from});
      return;
    }
  }
  download(stream_, to, from);
}

void Engine::enqueue_result() {
  Exchange& ring = exchange(enqueued_);
  to_host(ring.result, result_);
  to_host(ring.updates, optimizer_->state());
  if (device_ == Device::cuda) done_[enqueued_ % kRing].record(*queue_);
  ++enqueued_;
}

StepResult Engine::take_result() {
  check(taken_ < enqueued_, "no step without its result taken");
  if (device_ == Device::cuda) {
    try {
      done_[taken_ % kRing].synchronize();
    } catch (const Error& e) {
      // Launches do not wait: what failed is known to the device alone.
      if (e.code() != ExitCode::device || debug_) throw;
      fail(e.code(), "rank {}: {}: an op of this step or the one before failed; debug.blocking=true names it",
           world_.rank(), e.what());
    }
  }
  const Exchange& ring = exchange(taken_);
  const double* const r = ring.result;
  const double votes = r[2 + mtp_depths_], bad = r[3 + mtp_depths_];
  const ValidTokens& valid = valid_tokens_[taken_ % kRing];
  double mtp_loss = 0;
  for (Index k = 0; k < mtp_depths_; ++k)
    mtp_loss += r[2 + k] / std::max(1.0, valid.mtp[static_cast<std::size_t>(k)]) / static_cast<double>(mtp_depths_);
  // As UpdateScalars decides.
  StepResult result{.loss = r[1] / valid.next,
                    .mtp_loss = mtp_loss,
                    .grad_norm = std::sqrt(r[0]),
                    .finite = r[0] >= 0 && r[0] <= kMostSquaredNorm && std::fabs(r[1]) <= kMostLoss && bad == 0,
                    .weights_good = bad == 0,
                    .within = r[0] <= ring.limits[0] && r[1] <= ring.limits[1],
                    .stop = votes > 0,
                    .updates = ring.updates[0]};
  if (checked_[taken_ % kRing]) {
    const std::int64_t* const sums = sums_of(taken_);
    result.sums.assign(sums, sums + kRankSums * static_cast<std::size_t>(world_.size()));
    const std::size_t at = taken_ % kRing;
    result.check_seconds =
        device_ == Device::cuda ? check_end_[at].seconds_since(check_begin_[at]) : check_seconds_[at];
  }
  if (device_ != Device::dry) result.expert_tokens.resize(expert_layers_.size());
  for (std::size_t row = 0; row < result.expert_tokens.size(); ++row) {
    const float* const tokens = expert_tokens_of(taken_) + static_cast<Index>(row) * expert_stride_;
    result.expert_tokens[expert_layers_[row]].assign(tokens, tokens + config_.model.n_routed_experts);
  }
  ++taken_;
  return device_ == Device::dry ? StepResult{} : result;
}

void Engine::enqueue_step(std::span<const Batch> micro_batches, const ValidTokens& valid_tokens, double lr, bool stop,
                          const StepLimits& limits, const StepChecks& checks) {
  enqueue_gradients(micro_batches, valid_tokens, lr, stop, limits, checks);
  stream_.set_place({.phase = "optimizer"});
  if (const gpu::Event* event = std::exchange(update_after_, nullptr)) queue_->wait(*event);
  optimizer_->step(stream_, result_.slice(0, 0, 1), result_.slice(0, 1, 2),
                   result_.slice(0, result_.dim(0) - 1, result_.dim(0)),
                   config_.model.type == "deepseek_v3" ? static_cast<float>(config_.moe.bias_update_rate) : 0.0f);
  stream_.set_place({});
  enqueue_result();
}

StepResult Engine::train_step(std::span<const Batch> micro_batches, const ValidTokens& valid_tokens, double lr,
                              bool stop, const StepLimits& limits, const StepChecks& checks) {
  enqueue_step(micro_batches, valid_tokens, lr, stop, limits, checks);
  return take_result();
}

StepResult Engine::gradients(std::span<const Batch> micro_batches, const ValidTokens& valid_tokens, bool stop) {
  enqueue_gradients(micro_batches, valid_tokens, 0, stop, {}, {});
  enqueue_result();
  return take_result();
}

EngineSizes Engine::used() const { return {.stage = stage_->used(), .workspace = workspace_.high_water()}; }

std::vector<MemoryRow> Engine::memory() const {
  const bool dry = device_ == Device::dry, gpu = target_ == Device::cuda;
  const Stage::Sizes s = dry ? stage_->used() : stage_->capacities();
  std::size_t communication = 0;
  for (const auto* group :
       {&groups_.tensor, &groups_.pipeline, &groups_.replica, &groups_.expert, &groups_.expert_replica,
        &groups_.embedding, &groups_.model, &groups_.kv_replica, &groups_.control})
    if (*group) communication += (*group)->scratch_bytes();
  const auto slots = static_cast<std::size_t>(stage_->slots());
  std::vector<MemoryRow> rows{{"weights", params_->weight_bytes()},
                              {"master", params_->master_bytes()},
                              {"gradients", params_->gradient_bytes()},
                              {"optimizer", params_->optimizer_bytes()},
                              {"activations", s.slot * slots},
                              {"scratch", s.scratch},
                              {"stage boundary", s.boundary},
                              {"workspace", dry ? workspace_.high_water() : workspace_.capacity()},
                              {"device batches", s.batch * slots},
                              {"constants", s.constants},
                              {"scalars", kScalarBytes},
                              {"experts' tokens", expert_tokens_.bytes()},
                              {"communication", communication, gpu}};
  std::erase_if(rows, [](const MemoryRow& r) {
    return r.bytes == 0 &&
           (r.purpose == "master" || r.purpose == "gradients" || r.purpose == "optimizer" ||
            r.purpose == "device batches" || r.purpose == "constants" || r.purpose == "experts' tokens");
  });
  return rows;
}

}  // namespace dstrain
