#pragma once
// Tiny models, synthetic batches and thread ranks for whole-step tests.

#include <cmath>
#include <functional>
#include <map>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "lib/config/resolve.h"
#include "lib/core/rng.h"
#include "lib/train/machine.h"
#include "lib/train/weights.h"

namespace dstrain::test {

struct TinyModel {
  const char* name;
  const char* yaml;  // the model section
  Index layers;
  Index heads, kv_heads;
  Index inner;  // what the tensor size must divide
  // Makes a router choose every expert: then no rounding decides. Narrow latents of large weights are also further from
  // float32 than one rounding an op says: 6% where 0.15 stays within 4%.
  std::vector<std::string> undecided = {};
};

constexpr Index kLength = 13, kSamples = 24, kVocabulary = 331;

// 331 is a prime: no tensor size divides it. Lengths and widths are odd where legal.
inline const std::vector<TinyModel>& tiny_models() {
  static const std::vector<TinyModel> models{
      {"llama, 3 heads, one key-value head",
       "{ type: llama, vocab_size: 331, hidden_size: 21, num_hidden_layers: 8, num_attention_heads: 3, "
       "num_key_value_heads: 1, head_dim: 6, intermediate_size: 45, initializer_range: 0.1 }",
       8, 3, 1, 45},
      {"llama, 8 heads, 2 key-value heads, tied, biases",
       "{ type: llama, vocab_size: 331, hidden_size: 32, num_hidden_layers: 8, num_attention_heads: 8, "
       "num_key_value_heads: 2, intermediate_size: 40, tie_word_embeddings: true, attention_bias: true, "
       "mlp_bias: true, initializer_range: 0.1 }",
       8, 8, 2, 40},
      {"gpt2, 3 heads",
       "{ type: gpt2, vocab_size: 331, hidden_size: 21, num_hidden_layers: 8, num_attention_heads: 3, "
       "intermediate_size: 51, max_position_embeddings: 17, initializer_range: 0.1, tie_word_embeddings: true }",
       8, 3, 3, 51},
      {"gpt2, 8 heads, dropout",
       "{ type: gpt2, vocab_size: 331, hidden_size: 24, num_hidden_layers: 8, num_attention_heads: 8, "
       "intermediate_size: 40, max_position_embeddings: 17, initializer_range: 0.1, tie_word_embeddings: true, "
       "resid_pdrop: 0.1, embd_pdrop: 0.1, attn_pdrop: 0.1 }",
       8, 8, 8, 40},
      {"deepseek_v3, 8 heads, 6 experts",
       "{ type: deepseek_v3, vocab_size: 331, hidden_size: 24, num_hidden_layers: 8, num_attention_heads: 8, "
       "intermediate_size: 40, q_lora_rank: 10, kv_lora_rank: 12, qk_nope_head_dim: 6, qk_rope_head_dim: 4, "
       "v_head_dim: 5, first_k_dense_replace: 5, moe_intermediate_size: 8, n_routed_experts: 6, "
       "num_experts_per_tok: 2, n_group: 3, topk_group: 2, routed_scaling_factor: 2.5, max_position_embeddings: 17, "
       "rope_type: yarn, rope_factor: 2, rope_original_max_position_embeddings: 8, rope_mscale: 1, "
       "rope_mscale_all_dim: 1, attention_bias: true, num_nextn_predict_layers: 1, initializer_range: 0.2 }",
       8,
       8,
       8,
       8,
       {"model.num_experts_per_tok=6", "model.topk_group=3"}},
      {"deepseek_v2, 3 heads, 5 experts",
       "{ type: deepseek_v2, vocab_size: 331, hidden_size: 21, num_hidden_layers: 8, num_attention_heads: 3, "
       "intermediate_size: 45, kv_lora_rank: 11, qk_nope_head_dim: 5, qk_rope_head_dim: 2, v_head_dim: 7, "
       "first_k_dense_replace: 6, moe_intermediate_size: 9, n_routed_experts: 5, n_shared_experts: 2, "
       "num_experts_per_tok: 2, initializer_range: 0.2 }",
       8,
       3,
       3,
       9,
       {"model.num_experts_per_tok=5", "model.initializer_range=0.15"}},
      {"deepseek_v3 that predicts two further tokens, tied",
       "{ type: deepseek_v3, vocab_size: 331, hidden_size: 24, num_hidden_layers: 8, num_attention_heads: 8, "
       "intermediate_size: 40, kv_lora_rank: 12, qk_nope_head_dim: 6, qk_rope_head_dim: 4, v_head_dim: 5, "
       "first_k_dense_replace: 6, moe_intermediate_size: 8, n_routed_experts: 6, num_experts_per_tok: 2, "
       "tie_word_embeddings: true, num_nextn_predict_layers: 2, initializer_range: 0.2 }",
       8,
       8,
       8,
       8,
       {"model.num_experts_per_tok=6"}},
  };
  return models;
}

inline bool fits(const TinyModel& m, int tensor, int pipeline) {
  return m.heads % tensor == 0 && m.inner % tensor == 0 && (m.kv_heads % tensor == 0 || tensor % m.kv_heads == 0) &&
         pipeline <= m.layers;
}

// A job on data * tensor * pipeline ranks, 24 samples a step in micro-batches of `micro`.
inline Config tiny_job(const std::string& model, int data, int tensor, int pipeline, Index micro,
                       const std::vector<std::string>& overrides = {}) {
  const std::string yaml = format(
      "run: {{ dir: unused, seed: 7, device: cpu }}\nmodel: {}\ndata: {{ train: [unused] }}\n"
      "training: {{ steps: 20, sequence_length: {}, global_batch_size: {}, micro_batch_size: {} }}\n"
      "parallel: {{ data: {}, tensor: {}, pipeline: {}, bucket_bytes: 16384 }}\n"
      "optimizer: {{ lr: 3.0e-3 }}\nlr_schedule: {{ type: constant }}\n",
      model, kLength, kSamples, micro, data, tensor, pipeline);
  return resolve(parse_config(system_files(), "tiny.yaml", yaml, overrides), data * tensor * pipeline);
}

// The samples of a step that a data rank trains on, as micro-batches. A third of the rows have no loss, unevenly.
class TinyData {
 public:
  TinyData(const Config& config, int data_rank, std::int64_t step) {
    const StepShape plan = step_shape(config);
    tokens_.reserve(static_cast<std::size_t>(plan.micro_batches));
    for (Index m = 0; m < plan.micro_batches; ++m) {
      Memory& memory = tokens_.emplace_back();
      for (Index b = 0; b < plan.micro_batch_size; ++b) {
        const Index sample =
            step * kSamples + data_rank * plan.micro_batches * plan.micro_batch_size + m * plan.micro_batch_size + b;
        memory.samples.push_back(sample);
        for (Index t = 0; t < plan.length; ++t) {
          memory.tokens.push_back(token(sample, t));
          memory.targets.push_back(token(sample, t + 1));
          memory.positions.push_back(static_cast<std::int32_t>(t));
          memory.rows.push_back(sample);
          memory.weights.push_back(weight(sample, t));
        }
      }
      const auto tensor = [](auto& v, DType type) {
        return Tensor(v.data(), type, Device::cpu, {static_cast<Index>(v.size())});
      };
      batches_.push_back({.batch = plan.micro_batch_size,
                          .length = plan.length,
                          .tokens = tensor(memory.tokens, DType::i32),
                          .targets = tensor(memory.targets, DType::i32),
                          .positions = tensor(memory.positions, DType::i32),
                          .sample_ids = tensor(memory.samples, DType::i64),
                          .row_sample_ids = tensor(memory.rows, DType::i64),
                          .loss_weights = tensor(memory.weights, DType::f32)});
      if (const Index depths = config.model.num_nextn_predict_layers; depths > 0) {
        const Index rows = batches_.back().rows();
        memory.mtp_targets.resize(static_cast<std::size_t>(depths * rows));
        memory.mtp_weights.resize(static_cast<std::size_t>(depths * rows));
        batches_.back().mtp_targets = tensor(memory.mtp_targets, DType::i32).view({depths, rows});
        batches_.back().mtp_weights = tensor(memory.mtp_weights, DType::f32).view({depths, rows});
        fill_mtp(batches_.back());
      }
    }
    valid_.mtp.resize(static_cast<std::size_t>(config.model.num_nextn_predict_layers));
    for (Index s = 0; s < kSamples; ++s)
      for (Index t = 0; t < kLength; ++t) {
        const Index sample = step * kSamples + s;
        valid_.next += weight(sample, t);
        for (std::size_t k = 0; k < valid_.mtp.size(); ++k) {
          const Index at = t + static_cast<Index>(k) + 1;
          if (at < kLength) valid_.mtp[k] += weight(sample, at);
        }
      }
  }
  std::span<const Batch> batches() const { return batches_; }
  const ValidTokens& valid() const { return valid_; }

 private:
  struct Memory {
    std::vector<std::int32_t> tokens, targets, positions;
    std::vector<std::int64_t> samples, rows;
    std::vector<float> weights;
    std::vector<std::int32_t> mtp_targets;
    std::vector<float> mtp_weights;
  };
  static std::int32_t token(Index sample, Index t) {
    const auto r = philox(99, "tokens")(static_cast<std::uint64_t>(sample), static_cast<std::uint64_t>(t));
    return static_cast<std::int32_t>(r[0] % static_cast<std::uint32_t>(kVocabulary));
  }
  static float weight(Index sample, Index t) {
    return philox(99, "weights")(static_cast<std::uint64_t>(sample), static_cast<std::uint64_t>(t))[0] % 3 ? 1.0f
                                                                                                           : 0.0f;
  }
  std::vector<Memory> tokens_;
  std::vector<Batch> batches_;
  ValidTokens valid_{0};
};

// What a run of some steps leaves: gradients of step 0 by tensor name, each element from the rank that owns it.
struct TinyResult {
  std::map<std::string, NamedTensor> gradients, weights;
  std::vector<double> losses, norms, mtp_losses;
  std::vector<std::vector<std::vector<float>>> expert_tokens;  // by step, mixture and expert
};

// Copies the elements that this rank owns into the whole tensors.
inline void collect_owned(const StageModel& model, const std::function<std::vector<float>(const Param&)>& values,
                          std::map<std::string, NamedTensor>& into) {
  const auto mine = gather_tensors(model, values);
  model.visit([&](Param& param) {
    for (const Piece& piece : param.pieces) {
      if (!piece.owned) continue;
      const NamedTensor& from = mine.at(piece.name);
      NamedTensor& to = into[piece.name];
      if (to.values.empty()) to = {from.shape, std::vector<float>(from.values.size())};
      const Index columns = piece.global.rank() == 2 ? piece.extent[1] : 1,
                  width = piece.global.rank() == 2 ? piece.global[1] : 1;
      for (Index i = 0; i < piece.extent[0]; ++i)
        for (Index j = 0; j < columns; ++j) {
          const auto at = static_cast<std::size_t>((piece.offset[0] + i) * width +
                                                   (piece.global.rank() == 2 ? piece.offset[1] + j : 0));
          to.values[at] = from.values[at];
        }
    }
  });
}

// Runs `steps` steps on this rank; adds what it owns to `result` under `mutex`. `nudge` moves every initial weight by
// that many ulps, up or down at random.
// `look` sees the stage when the gradients of step 0 are there.
inline void run_tiny(World& world, const Config& config, int steps, int nudge, TinyResult& result, std::mutex& mutex,
                     const std::function<void(Engine&)>& look = {}) {
  const Mesh mesh(mesh_sizes(config.parallel));
  const Device device = run_device(config);
  use_device(config, world, device);
  const auto owned = make_engine(config, world, mesh, device, 1);
  Engine& engine = *owned;
  engine.initialize(config.run.seed);
  if (nudge != 0)
    engine.stage().model().visit([&](Param& p) {
      std::vector<float> w = engine.read(p, Role::weight);
      for (Index i = 0; i < p.numel(); ++i) {
        float& v = w[static_cast<std::size_t>(i)];
        if (v == 0) continue;  // padding stays zero
        const bool up =
            philox(static_cast<std::uint64_t>(nudge), p.pieces.front().name)(0, static_cast<std::uint64_t>(i))[0] & 1;
        v = std::nextafter(v, up ? 1e30f : -1e30f);
      }
      engine.write(p, Role::weight, w);
    });
  const int data_rank = engine.coordinates().data;
  {
    const TinyData data(config, data_rank, 0);
    engine.gradients(data.batches(), data.valid(), false);
    if (look) look(engine);
    const std::lock_guard lock(mutex);
    if (data_rank < config.parallel.expert)
      collect_owned(
          engine.stage().model(), [&](const Param& p) { return engine.gradient(p); }, result.gradients);
  }
  for (int step = 0; step < steps; ++step) {
    const TinyData data(config, data_rank, step);
    const StepResult r = engine.train_step(data.batches(), data.valid(), config.optimizer.lr, false);
    if (world.rank() == 0) {
      result.losses.push_back(r.loss);
      result.norms.push_back(r.grad_norm);
      result.mtp_losses.push_back(r.mtp_loss);
      result.expert_tokens.push_back(r.expert_tokens);
    }
  }
  const std::lock_guard lock(mutex);
  if (data_rank < config.parallel.expert)
    collect_owned(
        engine.stage().model(), [&](const Param& p) { return engine.read(p, Role::weight); }, result.weights);
}

inline TinyResult run_tiny_threads(const Config& config, int steps, int nudge = 0) {
  TinyResult result;
  std::mutex mutex;
  run_threads(Mesh(mesh_sizes(config.parallel)).ranks(),
              [&](World& world) { run_tiny(world, config, steps, nudge, result, mutex); });
  return result;
}

// How far a gradient may be from another order of summation: an error of one rounding for each of about twelve ops a
// layer, times the square root of the rows that a sum runs over, relative to the tensor's largest element.
inline double gradient_tolerance(Index layers, Index rows) {
  return 0x1p-24 * 12.0 * static_cast<double>(layers) * std::sqrt(static_cast<double>(rows));
}

// The largest difference relative to the largest reference element.
inline double relative_error(const NamedTensor& ours, const NamedTensor& reference) {
  double scale = 0, error = 0;
  for (const float r : reference.values) scale = std::max(scale, std::fabs(static_cast<double>(r)));
  for (std::size_t i = 0; i < reference.values.size(); ++i) {
    const double d = std::fabs(static_cast<double>(ours.values.at(i)) - static_cast<double>(reference.values[i]));
    error = std::max(error, std::isnan(d) ? 1e30 : d);
  }
  return scale > 0 ? error / scale : error;
}

// Losses may differ by ten times what one-ulp changes of the initial weights do: the running maximum over three such
// runs, and never less than one rounding of the loss.
inline std::vector<double> loss_spread(const Config& one_rank, const TinyResult& base, int steps) {
  std::vector<double> spread(base.losses.size(), 0.0);
  for (int nudge = 1; nudge <= 3; ++nudge) {
    const TinyResult moved = run_tiny_threads(one_rank, steps, nudge);
    for (std::size_t i = 0; i < spread.size(); ++i)
      spread[i] = std::max(
          {spread[i], i ? spread[i - 1] : 0.0, std::fabs(moved.losses[i] - base.losses[i]), 0x1p-24 * base.losses[i]});
  }
  return spread;
}

}  // namespace dstrain::test
