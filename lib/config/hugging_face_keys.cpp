#include "lib/config/hugging_face_keys.h"

#include <algorithm>
#include <iterator>

namespace dstrain {

namespace {

// Keys that do not change what a forward or backward computes here.
constexpr std::string_view kHarmless[] = {"_attn_implementation_autoset",
                                          "_name_or_path",
                                          "bad_words_ids",
                                          "begin_suppress_tokens",
                                          "bos_token_id",
                                          "chunk_size_feed_forward",
                                          "cross_attention_hidden_size",
                                          "decoder_start_token_id",
                                          "diversity_penalty",
                                          "do_sample",
                                          "dtype",
                                          "early_stopping",
                                          "encoder_no_repeat_ngram_size",
                                          "eos_token_id",
                                          "exponential_decay_length_penalty",
                                          "finetuning_task",
                                          "forced_bos_token_id",
                                          "forced_eos_token_id",
                                          "gradient_checkpointing",
                                          "id2label",
                                          "keys_to_ignore_at_inference",
                                          "label2id",
                                          "length_penalty",
                                          "max_length",
                                          "min_length",
                                          "model_type",
                                          "name_or_path",
                                          "no_repeat_ngram_size",
                                          "num_beam_groups",
                                          "num_beams",
                                          "num_return_sequences",
                                          "output_attentions",
                                          "output_hidden_states",
                                          "output_scores",
                                          "pad_token_id",
                                          "prefix",
                                          "pretraining_tp",
                                          "problem_type",
                                          "remove_invalid_values",
                                          "repetition_penalty",
                                          "return_dict",
                                          "return_dict_in_generate",
                                          "sep_token_id",
                                          "summary_activation",
                                          "summary_first_dropout",
                                          "summary_proj_to_labels",
                                          "summary_type",
                                          "summary_use_proj",
                                          "suppress_tokens",
                                          "task_specific_params",
                                          "temperature",
                                          "tie_encoder_decoder",
                                          "tokenizer_class",
                                          "top_k",
                                          "top_p",
                                          "torch_dtype",
                                          "torchscript",
                                          "transformers_version",
                                          "typical_p",
                                          "use_bfloat16",
                                          "use_cache"};

}  // namespace

const std::vector<FixedKey>& fixed_keys() {
  static const std::vector<FixedKey> table = {
      {"", "is_encoder_decoder", {"false"}},
      {"", "is_decoder", {"false", "true"}},
      {"", "add_cross_attention", {"false"}},
      {"", "pruned_heads", {"{}"}},
      {"llama", "architectures", {"null", R"(["LlamaForCausalLM"])"}},
      {"llama", "attention_dropout", {"0", "0.0"}},
      {"llama", "partial_rotary_factor", {"1", "1.0"}},
      {"llama", "rope_interleaved", {"false"}},
      {"deepseek_v3", "architectures", {"null", R"(["DeepseekV3ForCausalLM"])"}},
      {"deepseek_v3", "scoring_func", {R"("sigmoid")"}},
      {"deepseek_v3", "topk_method", {R"("noaux_tc")"}},
      {"deepseek_v3", "attention_dropout", {"0", "0.0"}},
      {"deepseek_v3", "moe_layer_freq", {"1"}},
      {"deepseek_v2", "architectures", {"null", R"(["DeepseekV2ForCausalLM"])"}},
      {"deepseek_v2", "scoring_func", {R"("softmax")"}},
      {"deepseek_v2", "norm_topk_prob", {"false"}},
      {"deepseek_v2", "mlp_bias", {"false"}},
      {"deepseek_v2", "attention_dropout", {"0", "0.0"}},
      {"deepseek_v2", "moe_layer_freq", {"1"}},
      {"gpt2", "architectures", {"null", R"(["GPT2LMHeadModel"])"}},
      {"gpt2", "reorder_and_upcast_attn", {"false", "true"}},  // where the softmax is in float32, and ours is
  };
  return table;
}

namespace {

using Name = KeyName;

constexpr Name kLlama[] = {{"vocab_size", "vocab_size"},
                           {"hidden_size", "hidden_size"},
                           {"num_hidden_layers", "num_hidden_layers"},
                           {"num_attention_heads", "num_attention_heads"},
                           {"num_key_value_heads", "num_key_value_heads"},
                           {"head_dim", "head_dim"},
                           {"intermediate_size", "intermediate_size"},
                           {"max_position_embeddings", "max_position_embeddings"},
                           {"rms_norm_eps", "rms_norm_eps"},
                           {"rope_theta", "rope_theta"},
                           {"hidden_act", "hidden_act"},
                           {"tie_word_embeddings", "tie_word_embeddings"},
                           {"attention_bias", "attention_bias"},
                           {"mlp_bias", "mlp_bias"},
                           {"initializer_range", "initializer_range"}};
constexpr Name kGpt2[] = {{"vocab_size", "vocab_size"},
                          {"n_embd", "hidden_size"},
                          {"hidden_size", "hidden_size"},
                          {"n_layer", "num_hidden_layers"},
                          {"num_hidden_layers", "num_hidden_layers"},
                          {"n_head", "num_attention_heads"},
                          {"num_attention_heads", "num_attention_heads"},
                          {"n_inner", "intermediate_size"},
                          {"n_positions", "max_position_embeddings"},
                          {"n_ctx", "max_position_embeddings"},
                          {"max_position_embeddings", "max_position_embeddings"},
                          {"layer_norm_epsilon", "layer_norm_epsilon"},
                          {"activation_function", "hidden_act"},
                          {"tie_word_embeddings", "tie_word_embeddings"},
                          {"initializer_range", "initializer_range"},
                          {"resid_pdrop", "resid_pdrop"},
                          {"embd_pdrop", "embd_pdrop"},
                          {"attn_pdrop", "attn_pdrop"},
                          {"scale_attn_weights", "scale_attn_weights"},
                          {"scale_attn_by_inverse_layer_idx", "scale_attn_by_inverse_layer_idx"}};

constexpr Name kDeepseekNames[] = {{"vocab_size", "vocab_size"},
                                   {"hidden_size", "hidden_size"},
                                   {"num_hidden_layers", "num_hidden_layers"},
                                   {"num_attention_heads", "num_attention_heads"},
                                   {"intermediate_size", "intermediate_size"},
                                   {"max_position_embeddings", "max_position_embeddings"},
                                   {"rms_norm_eps", "rms_norm_eps"},
                                   {"rope_theta", "rope_theta"},
                                   {"hidden_act", "hidden_act"},
                                   {"tie_word_embeddings", "tie_word_embeddings"},
                                   {"attention_bias", "attention_bias"},
                                   {"initializer_range", "initializer_range"},
                                   {"q_lora_rank", "q_lora_rank"},
                                   {"kv_lora_rank", "kv_lora_rank"},
                                   {"qk_nope_head_dim", "qk_nope_head_dim"},
                                   {"qk_rope_head_dim", "qk_rope_head_dim"},
                                   {"v_head_dim", "v_head_dim"},
                                   {"first_k_dense_replace", "first_k_dense_replace"},
                                   {"moe_intermediate_size", "moe_intermediate_size"},
                                   {"n_routed_experts", "n_routed_experts"},
                                   {"n_shared_experts", "n_shared_experts"},
                                   {"num_experts_per_tok", "num_experts_per_tok"},
                                   {"n_group", "n_group"},
                                   {"topk_group", "topk_group"},
                                   {"routed_scaling_factor", "routed_scaling_factor"}};
// Of one type alone.
constexpr Name kV2Names[] = {{"topk_method", "topk_method"}, {"num_experts", "n_routed_experts"}};
constexpr Name kV3Names[] = {{"norm_topk_prob", "norm_topk_prob"},
                             {"num_local_experts", "n_routed_experts"},
                             {"num_nextn_predict_layers", "num_nextn_predict_layers"},
                             {"num_mtp_layers", "num_nextn_predict_layers"},
                             {"rope_interleave", "rope_interleave"}};
// What DeepSeek's files carry and Hugging Face's models do not read, or derive.
constexpr std::string_view kDeepseekHarmless[] = {"aux_loss_alpha",      "auto_map",    "ep_size", "head_dim",
                                                  "num_key_value_heads", "qk_head_dim", "seq_aux"};
// What some known files carry: of SmolLM, of other trainers, of the first GPT-2s.
constexpr std::string_view kLlamaHarmless[] = {"is_llama_config", "max_sequence_length", "transformers.js_config",
                                               "unsloth_fixed", "unsloth_version"};
constexpr std::string_view kGpt2Harmless[] = {"_num_labels", "n_special", "num_labels", "output_past",
                                              "predict_special_tokens"};

}  // namespace

bool harmless_key(const std::string& type, std::string_view key) {
  const auto listed = [key](const auto& list) {
    return std::find(std::begin(list), std::end(list), key) != std::end(list);
  };
  return listed(kHarmless) || (type == "llama" && listed(kLlamaHarmless)) ||
         (type == "gpt2" && listed(kGpt2Harmless)) ||
         ((type == "deepseek_v2" || type == "deepseek_v3") && listed(kDeepseekHarmless));
}

std::vector<KeyName> key_names(const std::string& type) {
  const auto list = [](const auto& table) { return std::vector<Name>(std::begin(table), std::end(table)); };
  if (type == "llama") return list(kLlama);
  if (type == "gpt2") return list(kGpt2);
  std::vector<Name> names = list(kDeepseekNames);
  for (const Name& n : type == "deepseek_v2" ? list(kV2Names) : list(kV3Names)) names.push_back(n);
  return names;
}

namespace {

ModelConfig deepseek_v3_defaults() {
  ModelConfig m;
  m.type = "deepseek_v3";
  m.vocab_size = 129280;
  m.hidden_size = 7168;
  m.num_hidden_layers = 61;
  m.num_attention_heads = 128;
  m.intermediate_size = 18432;
  m.moe_intermediate_size = 2048;
  m.max_position_embeddings = 4096;
  m.hidden_act = "silu";
  m.q_lora_rank = 1536;
  m.kv_lora_rank = 512;
  m.first_k_dense_replace = 3;
  m.n_routed_experts = 256;
  m.n_shared_experts = 1;
  m.num_experts_per_tok = 8;
  m.n_group = 8;
  m.topk_group = 4;
  m.routed_scaling_factor = 2.5;
  return m;
}

ModelConfig deepseek_v2_defaults() {
  ModelConfig m;
  m.type = "deepseek_v2";
  m.vocab_size = 102400;
  m.hidden_size = 4096;
  m.num_hidden_layers = 32;
  m.num_attention_heads = 32;
  m.intermediate_size = 11008;
  m.moe_intermediate_size = 1407;
  m.max_position_embeddings = 2048;
  m.hidden_act = "silu";
  m.q_lora_rank = 1536;
  m.kv_lora_rank = 512;
  m.first_k_dense_replace = 0;
  m.n_routed_experts = 64;
  m.n_shared_experts = 2;
  return m;
}

ModelConfig llama_defaults() {
  ModelConfig m;
  m.type = "llama";
  m.vocab_size = 32000;
  m.hidden_size = 4096;
  m.num_hidden_layers = 32;
  m.num_attention_heads = 32;
  m.intermediate_size = 11008;
  m.max_position_embeddings = 2048;
  m.hidden_act = "silu";
  return m;
}

ModelConfig gpt2_defaults() {
  ModelConfig m;
  m.type = "gpt2";
  m.vocab_size = 50257;
  m.hidden_size = 768;
  m.num_hidden_layers = 12;
  m.num_attention_heads = 12;
  m.max_position_embeddings = 1024;
  m.hidden_act = "gelu_new";
  m.tie_word_embeddings = true;
  m.resid_pdrop = m.embd_pdrop = m.attn_pdrop = 0.1;
  return m;
}

}  // namespace

ModelConfig hugging_face_defaults(const std::string& type) {
  return type == "llama"         ? llama_defaults()
         : type == "gpt2"        ? gpt2_defaults()
         : type == "deepseek_v2" ? deepseek_v2_defaults()
                                 : deepseek_v3_defaults();
}

}  // namespace dstrain
