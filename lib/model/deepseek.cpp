#include <algorithm>
#include <cmath>

#include "lib/layers/mla.h"
#include "lib/layers/moe.h"
#include "lib/model/llama.h"
#include "lib/model/rotary.h"

namespace dstrain {

namespace {

constexpr float kLatentEps = 1e-6f;  // of the latents' norms: Hugging Face's default, not rms_norm_eps

class Deepseek final : public Llama {
 public:
  Deepseek(const ModelConfig& model, TensorShard shard, TensorShard experts, float balance_alpha)
      : Llama(model, shard), experts_(experts), balance_alpha_(balance_alpha) {}

  std::unique_ptr<Layer> attention(Index layer, Index slot) const override {
    const std::string p = prefix(layer) + "self_attn.";
    const Index heads = m.num_attention_heads, hidden = m.hidden_size, query = m.head_dim;
    MlaSpec spec{.heads = heads / s.size,
                 .nope = m.qk_nope_head_dim,
                 .rope = m.qk_rope_head_dim,
                 .value = m.v_head_dim,
                 .cache_slot = slot,
                 .scale = attention_scale(m),
                 .attention_factor = attention_factor(m),
                 .neighbours = m.rope_interleave,
                 .inverse_frequencies = inverse_frequencies(m)};
    const auto bias = [&](const std::string& name, Index rows) -> std::optional<Param> {
      if (!m.attention_bias) return {};
      return vector_param({whole_rows(p + name + ".bias", rows, s)}, Init::zeros);
    };
    std::optional<Mla::QueryLatent> latent;
    if (m.q_lora_rank > 0)
      latent.emplace(Mla::QueryLatent{
          Linear(Split::whole, whole(p + "q_a_proj.weight", m.q_lora_rank, hidden), bias("q_a_proj", m.q_lora_rank)),
          latent_norm(p + "q_a_layernorm.weight", m.q_lora_rank)});
    const Index query_input = m.q_lora_rank > 0 ? m.q_lora_rank : hidden;
    const Index down = m.kv_lora_rank + m.qk_rope_head_dim;
    return std::make_unique<Mla>(
        std::move(spec), norm(prefix(layer) + "input_layernorm.weight"), std::move(latent),
        Linear(Split::column,
               by_rows(p + (m.q_lora_rank > 0 ? "q_b_proj.weight" : "q_proj.weight"), heads * query, query_input)),
        Linear(Split::whole, whole(p + "kv_a_proj_with_mqa.weight", down, hidden), bias("kv_a_proj_with_mqa", down)),
        latent_norm(p + "kv_a_layernorm.weight", m.kv_lora_rank),
        Linear(Split::column,
               by_rows(p + "kv_b_proj.weight", heads * (m.qk_nope_head_dim + m.v_head_dim), m.kv_lora_rank)),
        Linear(Split::row,
               weight_param({full_rows(p + "o_proj.weight")}, shard_columns(heads * m.v_head_dim, s), false, std_dev()),
               bias("o_proj", hidden)));
  }

  std::unique_ptr<Layer> mlp(Index layer) const override {
    if (layer < m.first_k_dense_replace) return Llama::mlp(layer);
    const std::string p = prefix(layer) + "mlp.";
    Param counts{.shape = {m.n_routed_experts}, .init = Init::zeros, .decay = false, .rule = UpdateRule::count};
    if (m.type == "deepseek_v3") {
      counts = vector_param({whole_rows(p + "gate.e_score_correction_bias", m.n_routed_experts, s)}, Init::zeros);
      counts.rule = UpdateRule::balance;
    }
    std::optional<Moe::Shared> shared;
    if (m.n_shared_experts > 0) {
      const Index width = m.moe_intermediate_size * m.n_shared_experts;
      shared.emplace(Moe::Shared{gate_up({p + "shared_experts."}, width), down({p + "shared_experts."}, width)});
    }
    std::vector<std::string> experts;
    const Index here = m.n_routed_experts / experts_.size, first = here * experts_.rank;
    for (Index e = first; e < first + here; ++e) experts.push_back(format("{}experts.{}.", p, e));
    const auto spread = [&](Param param) {
      param.spread = experts_.size > 1;
      return param;
    };
    return std::make_unique<Moe>(MoeSpec{.experts = m.n_routed_experts,
                                         .chosen = m.num_experts_per_tok,
                                         .rule = rule(),
                                         .balance_alpha = balance_alpha_,
                                         .mtp = layer >= m.num_hidden_layers},
                                 norm(prefix(layer) + "post_attention_layernorm.weight"),
                                 whole(p + "gate.weight", m.n_routed_experts, m.hidden_size), std::move(counts),
                                 spread(gate_up(experts, m.moe_intermediate_size)),
                                 spread(down(experts, m.moe_intermediate_size)), std::move(shared));
  }

  MtpNorms mtp(Index layer) const override {
    const std::string p = prefix(layer);
    return {.embedding = norm(p + "enorm.weight"),
            .hidden = norm(p + "hnorm.weight"),
            .head = norm(p + "shared_head.norm.weight"),
            .join = Linear(Split::whole, whole(p + "eh_proj.weight", m.hidden_size, 2 * m.hidden_size))};
  }

 private:
  RouterRule rule() const {
    const float scale = static_cast<float>(m.routed_scaling_factor);
    if (m.type == "deepseek_v3")
      return {.scoring = RouterScores::sigmoid,
              .groups = m.n_group,
              .top_groups = m.topk_group,
              .group_best = 2,
              .normalize = m.norm_topk_prob,
              .scale = scale};
    const bool grouped = m.topk_method == "group_limited_greedy";
    return {.scoring = RouterScores::softmax,
            .groups = grouped ? m.n_group : 1,
            .top_groups = grouped ? m.topk_group : 1,
            .group_best = 1,
            .normalize = false,
            .scale = scale};
  }
  Param whole(const std::string& name, Index rows, Index columns) const {
    return weight_param({whole_rows(name, rows, s)}, whole_columns(columns), false, std_dev());
  }
  Param by_rows(const std::string& name, Index rows, Index columns) const {
    return weight_param({shard_rows(name, rows, s)}, whole_columns(columns), false, std_dev());
  }
  Norm latent_norm(const std::string& name, Index width) const {
    return {kLatentEps, vector_param({whole_rows(name, width, s)}, Init::ones)};
  }
  // Of each network, whose names begin as given, rows [gate | up]; one below the other.
  Param gate_up(const std::vector<std::string>& networks, Index width) const {
    std::vector<RowPart> parts;
    for (const std::string& p : networks) {
      parts.push_back(shard_rows(p + "gate_proj.weight", width, s));
      parts.push_back(shard_rows(p + "up_proj.weight", width, s));
    }
    return weight_param(parts, whole_columns(m.hidden_size), false, std_dev());
  }
  Param down(const std::vector<std::string>& networks, Index width) const {
    std::vector<RowPart> parts;
    for (const std::string& p : networks) parts.push_back(full_rows(p + "down_proj.weight"));
    return weight_param(parts, shard_columns(width, s), false, std_dev());
  }

  TensorShard experts_;
  float balance_alpha_;
};

}  // namespace

std::unique_ptr<Family> make_deepseek(const ModelConfig& model, TensorShard shard, TensorShard experts,
                                      float balance_alpha) {
  return std::make_unique<Deepseek>(model, shard, experts, balance_alpha);
}

}  // namespace dstrain
