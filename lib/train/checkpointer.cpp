#include "lib/train/checkpointer.h"

#include <utility>

#include "lib/core/hash.h"

namespace dstrain {

std::string job_identity(const Config& config) {
  const ModelConfig& m = config.model;
  std::string deepseek;
  if (m.deepseek())
    deepseek = format(" {} {} {} {} {} {} {} {} {} {} {} {}", m.q_lora_rank, m.kv_lora_rank, m.qk_nope_head_dim,
                      m.qk_rope_head_dim, m.v_head_dim, m.first_k_dense_replace, m.moe_intermediate_size,
                      m.n_routed_experts, m.n_shared_experts, m.num_experts_per_tok, m.n_group, m.topk_group) +
               format(" {} {} {} {} {} {} {} {} {} {}", static_cast<int>(m.norm_topk_prob), m.topk_method,
                      m.routed_scaling_factor, m.rope_type, m.rope_factor, m.rope_original_max_position_embeddings,
                      m.rope_beta_fast, m.rope_beta_slow, m.rope_mscale, m.rope_mscale_all_dim);
  return hex(
      xxh3(format("{} {} {} {} {} {} {} {} {} {} {} {} {} {} {} {} {}", m.type, m.vocab_size, m.hidden_size,
                  m.num_hidden_layers, m.num_attention_heads, m.num_key_value_heads, m.head_dim, m.intermediate_size,
                  m.max_position_embeddings, m.rms_norm_eps, m.layer_norm_epsilon, m.rope_theta, m.hidden_act,
                  static_cast<int>(m.tie_word_embeddings), static_cast<int>(m.attention_bias),
                  static_cast<int>(m.mlp_bias), config.training.sequence_length) +
           deepseek));
}

Checkpointer::Checkpointer(const Config& config, const Files& files, const Clock& clock, const std::string& directory,
                           ProcessGroup& group, Engine& engine)
    : config_(config),
      files_(files),
      clock_(clock),
      directory_(directory),
      group_(group),
      engine_(engine),
      writer_(files, directory, group, config.checkpoint.keep),
      snapshot_(engine.params(), engine.groups().replica->rank(), engine.groups().replica->size()) {
  snapshot_.take(engine.stream());
  snapshot_.wait();
  if (engine.stream().device() == Device::cuda) device_ = gpu::current();
}

Checkpointer::~Checkpointer() {
  if (thread_.joinable()) thread_.join();
}

std::optional<CheckpointState> Checkpointer::restore(const std::function<void(const std::string&)>& report) {
  std::optional<Checkpoint> checkpoint = open_newest(files_, directory_, group_, report);
  if (!checkpoint) return {};
  const CheckpointState state = checkpoint->state();
  require(state.config_hash == job_identity(config_), ExitCode::checkpoint,
          "{}: it was saved by a job with another model or training.sequence_length", checkpoint->path());
  require(state.seed == config_.run.seed, ExitCode::checkpoint, "{}: it was trained with run.seed {}, the job has {}",
          checkpoint->path(), state.seed, config_.run.seed);
  Agreement(group_).together([&] {
    const ParamArena& params = engine_.params();
    std::vector<float> values;
    for (const ParamArena::Entry& entry : params.entries()) {
      if (entry.range.size() == 0) continue;
      values.resize(static_cast<std::size_t>(entry.range.size()));
      for (const Role role : {Role::weight, Role::exp_avg, Role::exp_avg_sq}) {
        checkpoint->read(slab_of(entry, role, values.data()));
        params.write(engine_.stream(), role, entry.range, values.data());
      }
    }
  });
  writer_.mark_verified(state.step);
  return state;
}

Checkpointer::Stall Checkpointer::save(const CheckpointState& state) {
  Stall stall;
  double at = clock_.now();
  const auto lap = [&] { return clock_.now() - std::exchange(at, clock_.now()); };
  collect();
  stall.wait = lap();
  snapshot_.take(engine_.stream());
  if (const gpu::Event* copied = snapshot_.copied()) engine_.update_after(*copied);
  stall.copy = lap();
  done_ = false;
  if (config_.checkpoint.async) {
    thread_ = std::thread([this, state] { write(state); });
  } else {
    write(state);
    stall.write = lap();
  }
  return stall;
}

void Checkpointer::write(const CheckpointState& state) {
  Outcome outcome{.step = state.step};
  const double begin = clock_.now();
  Whereabouts* const here = engine_.stream().whereabouts();
  if (here) here->saving = state.step;
  try {
    if (device_ >= 0) gpu::use(device_);
    snapshot_.wait();
    // What is published can be gone back to.
    Agreement(group_).together([&] { snapshot_.require_finite(); });
    SaveResult result = writer_.save(state, snapshot_.slabs());
    outcome.bytes = result.bytes;
    outcome.warnings = std::move(result.warnings);
  } catch (...) {
    outcome.error = std::current_exception();
  }
  outcome.seconds = clock_.now() - begin;
  if (here) here->saving = -1;
  outcome_ = std::move(outcome);
  done_ = true;
}

void Checkpointer::collect() {
  if (thread_.joinable()) thread_.join();
  if (outcome_) outcomes_.push_back(std::move(*outcome_));
  outcome_.reset();
  done_ = false;
}

std::vector<Checkpointer::Outcome> Checkpointer::poll() {
  if (done_) collect();
  return std::exchange(outcomes_, {});
}

std::vector<Checkpointer::Outcome> Checkpointer::finish() {
  collect();
  return std::exchange(outcomes_, {});
}

}  // namespace dstrain
