#include "lib/train/checkpointer.h"

#include <algorithm>
#include <chrono>
#include <numeric>
#include <utility>

#include "lib/core/hash.h"

namespace dstrain {

namespace {

constexpr Index kRestored = Index{16} << 20;  // elements read at a time
constexpr double kLeave = 2;                  // seconds that a write which was given up has to end at last

std::unique_ptr<ProcessGroup> everyone(World& world, Poster poster) {
  std::vector<int> all(static_cast<std::size_t>(world.size()));
  std::iota(all.begin(), all.end(), 0);
  return world.group(poster, GroupKind::control, all);
}

}  // namespace

std::string job_identity(const Config& config) {
  const ModelConfig& m = config.model;
  std::string more;
  if (m.deepseek())
    more = format(" {} {} {} {} {} {} {} {} {} {} {} {}", m.q_lora_rank, m.kv_lora_rank, m.qk_nope_head_dim,
                  m.qk_rope_head_dim, m.v_head_dim, m.first_k_dense_replace, m.moe_intermediate_size,
                  m.n_routed_experts, m.n_shared_experts, m.num_experts_per_tok, m.n_group, m.topk_group) +
           format(" {} {} {} {} {} {} {} {} {} {}", static_cast<int>(m.norm_topk_prob), m.topk_method,
                  m.routed_scaling_factor, m.rope_type, m.rope_factor, m.rope_original_max_position_embeddings,
                  m.rope_beta_fast, m.rope_beta_slow, m.rope_mscale, m.rope_mscale_all_dim);
  // What came later is named only where it says something, so that older checkpoints go on.
  if (!m.deepseek() && m.rope_type != "default")
    more += format(" rope {} {} {} {} {} {} {}", m.rope_type, m.rope_factor, m.rope_original_max_position_embeddings,
                   m.rope_beta_fast, m.rope_beta_slow, m.rope_mscale, m.rope_mscale_all_dim);
  if (m.rope_type == "llama3") more += format(" turns {} {}", m.rope_low_freq_factor, m.rope_high_freq_factor);
  if (m.rope_type == "yarn" && (m.rope_attention_factor > 0 || !m.rope_truncate))
    more += format(" yarn {} {}", m.rope_attention_factor, static_cast<int>(m.rope_truncate));
  if (!m.rope_interleave) more += " halves";
  if (!m.scale_attn_weights || m.scale_attn_by_inverse_layer_idx)
    more += format(" scale {} {}", static_cast<int>(m.scale_attn_weights),
                   static_cast<int>(m.scale_attn_by_inverse_layer_idx));
  if (m.num_nextn_predict_layers > 0) more += format(" mtp {} {}", m.num_nextn_predict_layers, config.mtp.input);
  return hex(
      xxh3(format("{} {} {} {} {} {} {} {} {} {} {} {} {} {} {} {} {}", m.type, m.vocab_size, m.hidden_size,
                  m.num_hidden_layers, m.num_attention_heads, m.num_key_value_heads, m.head_dim, m.intermediate_size,
                  m.max_position_embeddings, m.rms_norm_eps, m.layer_norm_epsilon, m.rope_theta, m.hidden_act,
                  static_cast<int>(m.tie_word_embeddings), static_cast<int>(m.attention_bias),
                  static_cast<int>(m.mlp_bias), config.training.sequence_length) +
           more));
}

Checkpointer::Writing::Writing(const Files& real, const std::string& directory, std::unique_ptr<ProcessGroup> all,
                               const Config& config, const Engine& engine)
    : files(real),
      group(std::move(all)),
      writer(files, directory, *group, config.checkpoint.keep, config.checkpoint.verify == "readback"),
      snapshot(engine.params(), engine.groups(), static_cast<std::size_t>(config.checkpoint.device_buffer_bytes)) {}

Checkpointer::Checkpointer(const Config& config, const Files& files, const Clock& clock, const std::string& directory,
                           World& world, Engine& engine)
    : config_(config),
      files_(files),
      clock_(clock),
      directory_(directory),
      world_(world),
      engine_(engine),
      trainer_group_(everyone(world, Poster::trainer)),
      agreement_(*trainer_group_, engine.stream().whereabouts()),
      writing_(std::make_shared<Writing>(files, directory, everyone(world, Poster::checkpoint), config, engine)) {
  writing_->snapshot.take(engine.stream());
  writing_->snapshot.wait();
  if (engine.stream().device() == Device::cuda) writing_->device = gpu::current();
}

Checkpointer::~Checkpointer() {
  if (!thread_.joinable()) return;
  if (given_up_ && !done()) {
    writing_->files.park();
    world_.interrupt(format("the checkpoint of step {} was given up", step_));
    std::unique_lock lock(writing_->mutex);
    if (!writing_->ended.wait_for(lock, std::chrono::duration<double>(kLeave), [&] { return writing_->done; })) {
      lock.unlock();
      thread_.detach();
      return;
    }
  }
  thread_.join();
}

std::optional<CheckpointState> Checkpointer::restore(const std::function<void(const std::string&)>& report) {
  std::optional<Checkpoint> checkpoint = open_newest(files_, directory_, *trainer_group_, report, &engine_.pool());
  if (!checkpoint) return {};
  const CheckpointState state = checkpoint->state();
  // Every rank finds the same: one tells it.
  agreement_.together([&] {
    const auto& tensors = checkpoint->manifest().tensors;
    const bool trained = std::any_of(tensors.begin(), tensors.end(), [](const auto& t) { return t.role == "exp_avg"; });
    require(trained, ExitCode::checkpoint,
            "{}: it was imported and holds weights alone; train in another run.dir, with model.weights={}",
            checkpoint->path(), config_.run.dir);
    require(state.config_hash == job_identity(config_), ExitCode::checkpoint,
            "{}: it was saved by a job with another model or training.sequence_length", checkpoint->path());
    require(state.seed == config_.run.seed, ExitCode::checkpoint, "{}: it was trained with run.seed {}, the job has {}",
            checkpoint->path(), state.seed, config_.run.seed);
  });
  agreement_.together([&] {
    const ParamArena& params = engine_.params();
    std::vector<float> values;
    for (const ParamArena::Entry& entry : params.entries()) {
      if (entry.range.size() == 0) continue;
      for (const Role role : {Role::weight, Role::exp_avg, Role::exp_avg_sq}) {
        const TensorSlab whole = slab_of(entry, role, nullptr);
        // In whole lines of 64 elements, as the arena's ops like them.
        const Index columns = whole.columns(), step = std::max<Index>(64, kRestored / columns / 64 * 64);
        for (Index row = 0; row < whole.rows(); row += step) {
          const Index rows = std::min(step, whole.rows() - row), first = entry.range.begin + row * columns;
          values.resize(static_cast<std::size_t>(rows * columns));
          TensorSlab part = whole;
          part.data = values.data();
          if (whole.rows() > 1) {
            const int axis = whole.transposed ? 1 : 0;
            part.offset[axis] += row;
            part.extent[axis] = rows;
          }
          checkpoint->read(part);
          params.write(engine_.stream(), role, {first, first + rows * columns}, values.data());
        }
      }
    }
  });
  if (!thread_.joinable()) writing_->writer.mark_verified(state.step);  // else it is in use
  return state;
}

Checkpointer::Stall Checkpointer::save(const CheckpointState& state) {
  Stall stall;
  double at = clock_.now();
  const auto lap = [&] { return clock_.now() - std::exchange(at, clock_.now()); };
  // Whether a write can begin is decided by all: it is collective.
  const bool free = wait();
  stall.skipped = agreement_.sum(free ? Index{0} : Index{1}) > 0;
  stall.wait = lap();
  if (stall.skipped) {
    outcomes_.push_back(
        {.step = state.step,
         .error = std::make_exception_ptr(
             Error(ExitCode::write, "an earlier write to this storage was given up and has not ended", true))});
    return stall;
  }
  collect();
  writing_->files.restore();
  writing_->snapshot.take(engine_.stream());
  if (const gpu::Event* copied = writing_->snapshot.copied()) engine_.update_after(*copied);
  stall.copy = lap();
  writing_->done = false;
  step_ = state.step;
  begin_ = clock_.now();
  slow_told_ = given_up_ = false;
  thread_ = std::thread([writing = writing_, state, &clock = clock_, here = engine_.stream().whereabouts()] {
    writing->write(state, clock, here);
  });
  if (!config_.checkpoint.async) {
    wait();
    stall.write = lap();
  }
  return stall;
}

void Checkpointer::Writing::write(const CheckpointState& state, const Clock& clock, Whereabouts* here) {
  Outcome result{.step = state.step};
  const double begin = clock.now();
  if (here) here->saving = state.step;
  try {
    if (device >= 0) gpu::use(device);
    snapshot.wait();
    // What is published can be gone back to.
    Agreement(*group).together([&] { snapshot.require_finite(); });
    SaveResult saved = writer.save(state, snapshot.slabs());
    result.bytes = saved.bytes;
    result.warnings = std::move(saved.warnings);
  } catch (...) {
    result.error = std::current_exception();
  }
  result.seconds = clock.now() - begin;
  if (here) here->saving = -1;
  const std::scoped_lock lock(mutex);
  outcome = std::move(result);
  done = true;
  ended.notify_all();
}

bool Checkpointer::done() const {
  const std::scoped_lock lock(writing_->mutex);
  return writing_->done;
}

bool Checkpointer::wait() {
  constexpr auto kLook = std::chrono::milliseconds(20);
  while (thread_.joinable()) {
    {
      std::unique_lock lock(writing_->mutex);
      if (writing_->ended.wait_for(lock, kLook, [&] { return writing_->done; })) return true;
    }
    give_up_when_late();
    if (given_up_) return done();
    // The storage has checkpoint.timeout; until then this rank does not hang.
    if (Whereabouts* const here = engine_.stream().whereabouts(); here && config_.checkpoint.timeout > 0)
      here->changed();
  }
  return true;
}

void Checkpointer::give_up_when_late() {
  const double seconds = clock_.now() - begin_, most = config_.checkpoint.timeout;
  if (!slow_told_ && predicted_ > 0 && seconds > std::max(1.0, 2 * predicted_)) {
    slow_told_ = true;
    notices_.push_back(
        format("the checkpoint of step {} is still being written after {:.1f} s; the one before took "
               "{:.1f} s",
               step_, seconds, predicted_));
  }
  if (given_up_ || most == 0 || seconds < most) return;
  given_up_ = true;
  const std::string why = format("given up after {:.0f} s (checkpoint.timeout): the storage does not answer", seconds);
  writing_->files.abandon(format("checkpoint of step {} {}", step_, why));
  outcomes_.push_back(
      {.step = step_, .seconds = seconds, .error = std::make_exception_ptr(Error(ExitCode::write, why, true))});
}

void Checkpointer::collect() {
  if (!thread_.joinable()) return;
  thread_.join();
  Outcome& outcome = writing_->outcome;
  if (!outcome.error) predicted_ = outcome.seconds;
  // That a write was given up has been told.
  if (!given_up_ || !outcome.error) outcomes_.push_back(std::move(outcome));
  outcome = {};
}

std::vector<Checkpointer::Outcome> Checkpointer::poll() {
  if (thread_.joinable()) {
    if (done())
      collect();
    else
      give_up_when_late();
  }
  return std::exchange(outcomes_, {});
}

std::vector<Checkpointer::Outcome> Checkpointer::finish() {
  if (wait()) collect();
  return std::exchange(outcomes_, {});
}

}  // namespace dstrain
