#include "lib/model/llama.h"

#include "lib/model/rotary.h"

namespace dstrain {

std::unique_ptr<Layer> Llama::attention(Index layer, Index slot) const {
  AttentionSpec spec = attention_spec(layer, slot);
  spec.scale = attention_scale(m);
  spec.inverse_frequencies = inverse_frequencies(m);
  const std::string p = prefix(layer) + "self_attn.";
  const Index width = m.num_attention_heads * m.head_dim, kv_width = m.num_key_value_heads * m.head_dim;
  const auto parts = [&](const std::string& leaf) {
    return qkv_parts({p + "q_proj." + leaf, width, 0}, {p + "k_proj." + leaf, kv_width, 0},
                     {p + "v_proj." + leaf, kv_width, 0});
  };
  std::optional<Param> qkv_bias, out_bias;
  if (m.attention_bias) {
    qkv_bias = vector_param(parts("bias"), Init::zeros);
    out_bias = vector_param({whole_rows(p + "o_proj.bias", m.hidden_size, s)}, Init::zeros);
  }
  return std::make_unique<Attention>(
      spec, norm(prefix(layer) + "input_layernorm.weight"),
      Linear(Split::column, weight_param(parts("weight"), whole_columns(m.hidden_size), false, std_dev()), qkv_bias),
      Linear(Split::row, weight_param({full_rows(p + "o_proj.weight")}, shard_columns(width, s), false, std_dev()),
             out_bias));
}

std::unique_ptr<Layer> Llama::mlp(Index layer) const {
  const std::string p = prefix(layer) + "mlp.";
  const auto parts = [&](const std::string& leaf) {
    return std::vector<RowPart>{shard_rows(p + "gate_proj." + leaf, m.intermediate_size, s),
                                shard_rows(p + "up_proj." + leaf, m.intermediate_size, s)};
  };
  std::optional<Param> up_bias, down_bias;
  if (m.mlp_bias) {
    up_bias = vector_param(parts("bias"), Init::zeros);
    down_bias = vector_param({whole_rows(p + "down_proj.bias", m.hidden_size, s)}, Init::zeros);
  }
  return std::make_unique<Mlp>(
      layer, Activation::swiglu, 0.0f, norm(prefix(layer) + "post_attention_layernorm.weight"),
      Linear(Split::column, weight_param(parts("weight"), whole_columns(m.hidden_size), false, std_dev()), up_bias),
      Linear(Split::row,
             weight_param({full_rows(p + "down_proj.weight")}, shard_columns(m.intermediate_size, s), false, std_dev()),
             down_bias));
}

}  // namespace dstrain
