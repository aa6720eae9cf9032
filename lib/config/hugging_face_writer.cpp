#include <nlohmann/json.hpp>

#include "lib/config/hugging_face.h"

namespace dstrain {

namespace {

using Json = nlohmann::json;

// rope_scaling, with the keys that its type reads.
Json rope_scaling(const ModelConfig& m) {
  if (m.rope_type == "default") return nullptr;
  const bool yarn = m.rope_type == "yarn", llama3 = m.rope_type == "llama3";
  Json rope = {{"factor", m.rope_factor}, {"rope_type", m.rope_type}, {"type", m.rope_type}};
  if (yarn || llama3) rope["original_max_position_embeddings"] = m.rope_original_max_position_embeddings;
  if (yarn) rope.update({{"beta_fast", m.rope_beta_fast}, {"beta_slow", m.rope_beta_slow}});
  if (yarn && m.rope_mscale > 0) rope["mscale"] = m.rope_mscale;
  if (m.rope_mscale_all_dim > 0 && (yarn || m.deepseek())) rope["mscale_all_dim"] = m.rope_mscale_all_dim;
  if (yarn && m.rope_attention_factor > 0) rope["attention_factor"] = m.rope_attention_factor;
  if (yarn && !m.rope_truncate) rope["truncate"] = false;
  if (llama3) rope.update({{"high_freq_factor", m.rope_high_freq_factor}, {"low_freq_factor", m.rope_low_freq_factor}});
  return rope;
}

// The keys that Llama and DeepSeek share.
Json llama_keys(const ModelConfig& m) {
  return {{"attention_bias", m.attention_bias},
          {"attention_dropout", 0.0},
          {"hidden_act", m.hidden_act},
          {"hidden_size", m.hidden_size},
          {"initializer_range", m.initializer_range},
          {"intermediate_size", m.intermediate_size},
          {"max_position_embeddings", m.max_position_embeddings},
          {"num_attention_heads", m.num_attention_heads},
          {"num_hidden_layers", m.num_hidden_layers},
          {"num_key_value_heads", m.num_key_value_heads},
          {"pretraining_tp", 1},
          {"rms_norm_eps", m.rms_norm_eps},
          {"rope_scaling", rope_scaling(m)},
          {"rope_theta", m.rope_theta},
          {"tie_word_embeddings", m.tie_word_embeddings}};
}

Json llama_json(const ModelConfig& m) {
  Json json = llama_keys(m);
  json.update({{"architectures", {"LlamaForCausalLM"}}, {"head_dim", m.head_dim}, {"mlp_bias", m.mlp_bias}});
  return json;
}

Json gpt2_json(const ModelConfig& m) {
  Json json = {{"activation_function", m.hidden_act},
               {"architectures", {"GPT2LMHeadModel"}},
               {"attn_pdrop", m.attn_pdrop},
               {"embd_pdrop", m.embd_pdrop},
               {"initializer_range", m.initializer_range},
               {"layer_norm_epsilon", m.layer_norm_epsilon},
               {"n_embd", m.hidden_size},
               {"n_head", m.num_attention_heads},
               {"n_inner", nullptr},
               {"n_layer", m.num_hidden_layers},
               {"n_positions", m.max_position_embeddings},
               {"reorder_and_upcast_attn", false},
               {"resid_pdrop", m.resid_pdrop},
               {"scale_attn_by_inverse_layer_idx", m.scale_attn_by_inverse_layer_idx},
               {"scale_attn_weights", m.scale_attn_weights},
               {"tie_word_embeddings", m.tie_word_embeddings}};
  if (m.intermediate_size != 4 * m.hidden_size) json["n_inner"] = m.intermediate_size;
  return json;
}

Json deepseek_json(const ModelConfig& m) {
  Json json = llama_keys(m);
  json.update({{"ep_size", 1},
               {"first_k_dense_replace", m.first_k_dense_replace},
               {"kv_lora_rank", m.kv_lora_rank},
               {"moe_intermediate_size", m.moe_intermediate_size},
               {"moe_layer_freq", 1},
               {"n_group", m.n_group},
               {"n_routed_experts", m.n_routed_experts},
               {"n_shared_experts", m.n_shared_experts},
               {"num_experts_per_tok", m.num_experts_per_tok},
               {"q_lora_rank", nullptr},
               {"qk_nope_head_dim", m.qk_nope_head_dim},
               {"qk_rope_head_dim", m.qk_rope_head_dim},
               {"routed_scaling_factor", m.routed_scaling_factor},
               {"topk_group", m.topk_group},
               {"v_head_dim", m.v_head_dim}});
  if (m.q_lora_rank > 0) json["q_lora_rank"] = m.q_lora_rank;
  const bool v3 = m.type == "deepseek_v3";
  json["architectures"] = {v3 ? "DeepseekV3ForCausalLM" : "DeepseekV2ForCausalLM"};
  json["norm_topk_prob"] = v3 && m.norm_topk_prob;
  json["scoring_func"] = v3 ? "sigmoid" : "softmax";
  json["topk_method"] = v3 ? "noaux_tc" : m.topk_method;
  if (v3)
    json.update({{"num_nextn_predict_layers", m.num_nextn_predict_layers}, {"rope_interleave", m.rope_interleave}});
  return json;
}

}  // namespace

FileSettings file_settings(const std::string& text) {
  const Json root = Json::parse(text);
  FileSettings settings;
  for (const char* key : {"torch_dtype", "dtype"}) {
    const Json value = root.value(key, Json());
    for (const char* known : {"float32", "bfloat16", "float16"})
      if (value == Json(known)) settings.dtype = known;
  }
  for (const auto& [key, target] : {std::pair<const char*, std::string*>{"bos_token_id", &settings.bos_token_id},
                                    {"eos_token_id", &settings.eos_token_id},
                                    {"pad_token_id", &settings.pad_token_id}})
    *target = root.value(key, Json()).dump();
  return settings;
}

std::string to_hugging_face(const ModelConfig& model, const FileSettings& settings) {
  Json json = model.type == "llama"  ? llama_json(model)
              : model.type == "gpt2" ? gpt2_json(model)
                                     : deepseek_json(model);
  json["model_type"] = model.type;
  json["torch_dtype"] = settings.dtype;
  json["use_cache"] = true;
  json["vocab_size"] = model.vocab_size;
  json["bos_token_id"] = Json::parse(settings.bos_token_id);
  json["eos_token_id"] = Json::parse(settings.eos_token_id);
  json["pad_token_id"] = Json::parse(settings.pad_token_id);
  if (json["pad_token_id"].is_null() && model.pad_token_id >= 0) json["pad_token_id"] = model.pad_token_id;
  return json.dump(2) + "\n";
}

}  // namespace dstrain
