#include <cmath>

#include "lib/model/family.h"

namespace dstrain {

namespace {

// Its linears are stored (in, out), and q, k, v in one tensor.
class Gpt2 final : public Family {
 public:
  using Family::Family;
  std::string embedding_name() const override { return "transformer.wte.weight"; }
  std::string head_name() const override { return "lm_head.weight"; }
  std::optional<Param> positions() const override {
    return weight_param({whole_rows("transformer.wpe.weight", m.max_position_embeddings, s)},
                        whole_columns(m.hidden_size), false, std_dev());
  }

  std::unique_ptr<Layer> attention(Index layer, Index slot) const override {
    AttentionSpec spec = attention_spec(layer, slot);
    const double width = m.scale_attn_weights ? std::sqrt(static_cast<double>(m.head_dim)) : 1;
    const double depth = m.scale_attn_by_inverse_layer_idx ? static_cast<double>(layer + 1) : 1;
    spec.scale = static_cast<float>(1 / (width * depth));
    spec.attention_dropout = static_cast<float>(m.attn_pdrop);
    spec.residual_dropout = static_cast<float>(m.resid_pdrop);
    const std::string p = prefix(layer) + "attn.";
    const Index c = m.hidden_size;
    const auto parts = [&](const std::string& leaf) {
      const std::string name = p + "c_attn." + leaf;
      return qkv_parts({name, 3 * c, 0}, {name, 3 * c, c}, {name, 3 * c, 2 * c});
    };
    return std::make_unique<Attention>(
        spec, norm(prefix(layer) + "ln_1"),
        Linear(Split::column, weight_param(parts("weight"), whole_columns(c), true, std_dev()),
               vector_param(parts("bias"), Init::zeros)),
        projection(p + "c_proj", c));
  }

  std::unique_ptr<Layer> mlp(Index layer) const override {
    const std::string p = prefix(layer) + "mlp.";
    return std::make_unique<Mlp>(
        layer, m.hidden_act == "gelu" ? Activation::gelu_erf : Activation::gelu_tanh, static_cast<float>(m.resid_pdrop),
        norm(prefix(layer) + "ln_2"),
        Linear(Split::column,
               weight_param({shard_rows(p + "c_fc.weight", m.intermediate_size, s)}, whole_columns(m.hidden_size), true,
                            std_dev()),
               vector_param({shard_rows(p + "c_fc.bias", m.intermediate_size, s)}, Init::zeros)),
        projection(p + "c_proj", m.intermediate_size));
  }

  Norm final_norm() const override { return norm("transformer.ln_f"); }

 private:
  static std::string prefix(Index layer) { return format("transformer.h.{}.", layer); }
  // Into the residual stream: its initial values are scaled by 1 / sqrt(2 layers), as GPT-2's are.
  Linear projection(const std::string& name, Index inputs) const {
    const float std = std_dev() / std::sqrt(2.0f * static_cast<float>(m.num_hidden_layers));
    return {Split::row,
            weight_param({{name + ".weight", m.hidden_size, 0, m.hidden_size}}, shard_columns(inputs, s), true, std),
            vector_param({whole_rows(name + ".bias", m.hidden_size, s)}, Init::zeros)};
  }
  Norm norm(const std::string& name) const {
    return {static_cast<float>(m.layer_norm_epsilon),
            vector_param({whole_rows(name + ".weight", m.hidden_size, s)}, Init::ones),
            vector_param({whole_rows(name + ".bias", m.hidden_size, s)}, Init::zeros)};
  }
};

}  // namespace

std::unique_ptr<Family> make_gpt2(const ModelConfig& model, TensorShard shard) {
  return std::make_unique<Gpt2>(model, shard);
}

}  // namespace dstrain
