#include "lib/config/hugging_face.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <set>
#include <string_view>
#include <vector>

#include "lib/config/values.h"

namespace dstrain {

namespace {

using Json = nlohmann::json;

constexpr int kJsonDepth = 32;

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

// Keys that are accepted with these values only. Values are JSON text.
struct Fixed {
  std::string_view model;  // "" all
  std::string_view key;
  std::vector<std::string_view> values;
};
const std::vector<Fixed>& fixed_keys() {
  static const std::vector<Fixed> table = {
      {"", "is_encoder_decoder", {"false"}},
      {"", "is_decoder", {"false", "true"}},
      {"", "add_cross_attention", {"false"}},
      {"", "pruned_heads", {"{}"}},
      {"llama", "architectures", {"null", R"(["LlamaForCausalLM"])"}},
      {"llama", "pretraining_tp", {"1"}},
      {"llama", "attention_dropout", {"0", "0.0"}},
      {"llama", "partial_rotary_factor", {"1", "1.0"}},
      {"deepseek_v3", "architectures", {"null", R"(["DeepseekV3ForCausalLM"])"}},
      {"deepseek_v3", "scoring_func", {R"("sigmoid")"}},
      {"deepseek_v3", "topk_method", {R"("noaux_tc")"}},
      {"deepseek_v3", "rope_interleave", {"true"}},
      {"deepseek_v3", "attention_dropout", {"0", "0.0"}},
      {"deepseek_v3", "moe_layer_freq", {"1"}},
      {"deepseek_v3", "pretraining_tp", {"1"}},
      {"deepseek_v2", "architectures", {"null", R"(["DeepseekV2ForCausalLM"])"}},
      {"deepseek_v2", "scoring_func", {R"("softmax")"}},
      {"deepseek_v2", "norm_topk_prob", {"false"}},
      {"deepseek_v2", "mlp_bias", {"false"}},
      {"deepseek_v2", "attention_dropout", {"0", "0.0"}},
      {"deepseek_v2", "moe_layer_freq", {"1"}},
      {"deepseek_v2", "pretraining_tp", {"1"}},
      {"gpt2", "architectures", {"null", R"(["GPT2LMHeadModel"])"}},
      {"gpt2", "scale_attn_weights", {"true"}},
      {"gpt2", "scale_attn_by_inverse_layer_idx", {"false"}},
      {"gpt2", "reorder_and_upcast_attn", {"false"}},
  };
  return table;
}

// JSON key -> our key. Where two JSON keys name one of ours (GPT-2's attribute_map), they must agree.
struct Name {
  std::string_view json;
  std::string_view ours;
};
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
                          {"attn_pdrop", "attn_pdrop"}};

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
constexpr Name kV2Names[] = {{"topk_method", "topk_method"}};
constexpr Name kV3Names[] = {{"norm_topk_prob", "norm_topk_prob"},
                             {"num_nextn_predict_layers", "num_nextn_predict_layers"}};
// What DeepSeek's files carry and Hugging Face's models do not read, or derive.
constexpr std::string_view kDeepseekHarmless[] = {"aux_loss_alpha",      "auto_map",    "ep_size", "head_dim",
                                                  "num_key_value_heads", "qk_head_dim", "seq_aux"};

std::vector<Name> names_of(const std::string& type) {
  const auto list = [](const auto& table) { return std::vector<Name>(std::begin(table), std::end(table)); };
  if (type == "llama") return list(kLlama);
  if (type == "gpt2") return list(kGpt2);
  std::vector<Name> names = list(kDeepseekNames);
  for (const Name& n : type == "deepseek_v2" ? list(kV2Names) : list(kV3Names)) names.push_back(n);
  return names;
}

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
  m.vocab_size = 32000;
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

std::string shown_json(const Json& value) { return shown(value.dump(-1, ' ', false, Json::error_handler_t::replace)); }

// Refuses duplicate keys and deep nesting, which nlohmann's tree would hide.
Json parse_json(const std::string& text, const std::string& path) {
  std::vector<std::set<std::string>> keys;
  const auto watch = [&](int depth, Json::parse_event_t event, Json& value) {
    require(depth <= kJsonDepth, ExitCode::usage, "{}: nested deeper than {} levels", path, kJsonDepth);
    if (event == Json::parse_event_t::object_start) keys.emplace_back();
    if (event == Json::parse_event_t::object_end) keys.pop_back();
    if (event == Json::parse_event_t::key)
      require(keys.back().insert(value.get<std::string>()).second, ExitCode::usage, "{}: {}: given twice", path,
              shown(value.get<std::string>()));
    return true;
  };
  try {
    return Json::parse(text, watch);
  } catch (const Json::exception& e) {
    fail(ExitCode::usage, "{}: not valid JSON: {}", path, shown(std::string_view(e.what())));
  }
}

// Reads one JSON value into the field of fields.h with that name.
struct Assign {
  std::string_view name;
  const Json& value;
  std::string error;  // out
  bool in_model = false;

  void section(const char* section_name, const char*) { in_model = std::string_view(section_name) == "model"; }
  template <class T>
  void field(const Key& key, T& target) {
    if (in_model && name == key.name) assign(key, target);
  }

  void assign(const Key& key, std::int64_t& target) {
    if (value.is_null() && key.min == 0) {  // n_inner, head_dim, num_key_value_heads: derived; q_lora_rank: none
      target = 0;
      return;
    }
    if (!value.is_number_integer()) return wrong("an integer");
    const bool huge = value.is_number_unsigned() && value.get<std::uint64_t>() > INT64_MAX;
    if (huge || !in_range(key, static_cast<double>(value.get<std::int64_t>())))
      return wrong("an integer " + range_text(key));
    target = value.get<std::int64_t>();
  }
  void assign(const Key& key, double& target) {
    if (!value.is_number() || !in_range(key, value.get<double>())) return wrong("a number " + range_text(key));
    target = value.get<double>() + 0.0;  // -0 is 0
  }
  void assign(const Key&, bool& target) {
    if (!value.is_boolean()) return wrong("true or false");
    target = value.get<bool>();
  }
  void assign(const Key& key, std::string& target) {
    std::string list;
    for (const auto c : key.choices) {
      list += (list.empty() ? "" : ", ") + std::string(c);
      if (value.is_string() && value.get<std::string>() == c) {
        target = c;
        return;
      }
    }
    wrong("one of " + list);
  }
  template <class T>
  void assign(const Key&, T&) {
    check(false, "config.json maps to key '{}' of a type that it cannot have", std::string(name));
  }
  void wrong(const std::string& expected) { error = format("expected {}, found {}", expected, shown_json(value)); }
};

// Keys of a scaled rotary embedding; ours have "rope_" before them.
constexpr std::string_view kYarn[] = {
    "factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"};

// rope_scaling (transformers 4) or rope_parameters (5): the plain rotary embedding; DeepSeek's also YaRN.
void read_rope(const Json& value, const std::string& name, const Json& root, ModelConfig& model,
               std::vector<std::string>& errors) {
  if (value.is_null()) return;
  if (!value.is_object()) {
    errors.push_back(format("{}: expected a mapping, found {}", name, shown_json(value)));
    return;
  }
  for (const auto& [key, v] : value.items()) {
    const std::string path = name + "." + shown(key);
    if (model.deepseek() && (key == "rope_type" || key == "type") && v == Json("yarn")) {
      model.rope_type = "yarn";
    } else if (model.deepseek() &&
               std::find(std::begin(kYarn), std::end(kYarn), std::string_view(key)) != std::end(kYarn)) {
      const std::string ours = "rope_" + key;
      Assign assign{ours, v, {}};
      Config config;
      config.model = model;
      visit_fields(config, assign);
      if (!assign.error.empty()) errors.push_back(path + ": " + assign.error);
      model = config.model;
    } else if (key == "rope_type" || key == "type") {
      if (v != Json("default"))
        errors.push_back(format("{}: {} is not supported; only {}", path, shown_json(v),
                                model.deepseek() ? "default and yarn are" : "default is"));
    } else if (key == "rope_theta") {
      Assign assign{"rope_theta", v, {}};
      Config config;
      visit_fields(config, assign);
      if (!assign.error.empty())
        errors.push_back(path + ": " + assign.error);
      else if (root.contains("rope_theta") && root["rope_theta"] != v)
        errors.push_back(
            format("{}: {} differs from rope_theta: {}", path, shown_json(v), shown_json(root["rope_theta"])));
      else
        model.rope_theta = config.model.rope_theta;
    } else if (key == "partial_rotary_factor" && v.is_number() && v.get<double>() == 1.0) {
      continue;
    } else {
      errors.push_back(format("{}: {} is not supported", path, shown_json(v)));
    }
  }
}

// DeepSeek's FP8: its files hold weights and scales (lib/checkpoint/safetensors_model.h), the model what they stand
// for.
void read_quantization(const Json& value, std::vector<std::string>& errors) {
  if (value.is_null()) return;
  if (!value.is_object() || value.value("quant_method", Json()) != Json("fp8")) {
    errors.push_back(format("quantization_config: {} is not supported; only quant_method fp8 is", shown_json(value)));
    return;
  }
  const Json supported{
      {"quant_method", "fp8"}, {"weight_block_size", {128, 128}}, {"fmt", "e4m3"}, {"scale_fmt", "ue8m0"}};
  for (const auto& [key, v] : value.items()) {
    const std::string name = "quantization_config." + shown(key);
    // Of products that are computed in FP8, which none is here; and which modules had been left as they were.
    if (key == "activation_scheme" || key == "modules_to_not_convert") continue;
    if (!supported.contains(key))
      errors.push_back(format("{}: {} is not supported", name, shown_json(v)));
    else if (supported[key] != v)
      errors.push_back(format("{}: {} is not supported; only {} is", name, shown_json(v), supported[key].dump()));
  }
  if (!value.contains("weight_block_size"))
    errors.push_back("quantization_config.weight_block_size: missing; only [128,128] is supported");
}

}  // namespace

ModelConfig model_from_json(const std::string& text, const std::string& path) {
  const Json root = parse_json(text, path);
  require(root.is_object(), ExitCode::usage, "{}: expected a mapping, found {}", path, shown_json(root));
  const Json type = root.value("model_type", Json());
  const bool llama = type != Json("gpt2");
  const bool known_type =
      type == Json("llama") || type == Json("gpt2") || type == Json("deepseek_v2") || type == Json("deepseek_v3");
  require(known_type, ExitCode::usage,
          "{}: model_type: {} is not supported; llama, gpt2, deepseek_v2 and deepseek_v3 are", path, shown_json(type));

  Config config;
  config.model = type == Json("llama")         ? llama_defaults()
                 : type == Json("gpt2")        ? gpt2_defaults()
                 : type == Json("deepseek_v2") ? deepseek_v2_defaults()
                                               : deepseek_v3_defaults();
  ModelConfig& model = config.model;
  std::vector<std::string> errors;
  std::set<std::string, std::less<>> taken;  // our keys
  const std::vector<Name> names = names_of(model.type);
  const auto first_use = [&](std::string_view ours) {
    for (const auto& n : names)
      if (n.ours == ours && root.contains(std::string(n.json))) return n.json;
    return std::string_view{};
  };
  for (const auto& [key, value] : root.items()) {
    if (model.type == "deepseek_v2" && value.is_null() && (key == "n_group" || key == "topk_group")) continue;  // one
    const auto name =
        std::find_if(names.begin(), names.end(), [&, k = std::string_view(key)](const Name& n) { return n.json == k; });
    if (name != names.end()) {
      const std::string first(first_use(name->ours));
      if (first != key && root[first] != value) {
        errors.push_back(format("{}: {} differs from {}: {}", key, shown_json(value), first, shown_json(root[first])));
        continue;
      }
      Assign assign{name->ours, value, {}};
      visit_fields(config, assign);
      if (!assign.error.empty()) errors.push_back(key + ": " + assign.error);
      continue;
    }
    if (llama && (key == "rope_scaling" || key == "rope_parameters")) {
      read_rope(value, key, root, model, errors);
      continue;
    }
    if (model.type == "deepseek_v2" && key == "num_nextn_predict_layers" && (value == Json(0) || value.is_null()))
      continue;
    if (key == "quantization_config") {
      read_quantization(value, errors);
      continue;
    }
    const auto listed = [&](const auto& list) {
      return std::find(std::begin(list), std::end(list), std::string_view(key)) != std::end(list);
    };
    bool known = listed(kHarmless) || (model.deepseek() && listed(kDeepseekHarmless));
    for (const auto& fixed : fixed_keys()) {
      if (fixed.key != key || !(fixed.model.empty() || fixed.model == model.type)) continue;
      known = true;
      std::string list;
      bool accepted = false;
      for (const auto v : fixed.values) {
        accepted = accepted || value == Json::parse(v);
        list += (list.empty() ? "" : " or ") + std::string(v);
      }
      if (!accepted) errors.push_back(format("{}: {} is not supported; only {} is", key, shown_json(value), list));
    }
    if (!known)
      errors.push_back(
          format("{}: {}: unknown key; it may change what the model computes", shown(key), shown_json(value)));
  }
  if (errors.empty()) {
    const auto& act = model.hidden_act;
    if (llama && act != "silu") errors.push_back(format("hidden_act: \"{}\" is not supported; only silu is", act));
    if (!llama && act == "silu")
      errors.push_back("activation_function: \"silu\" is not supported; gelu_new, gelu_pytorch_tanh and gelu are");
  }
  std::string lines;
  for (const auto& e : errors) lines += (lines.empty() ? "" : "\n") + path + ": " + e;
  if (!lines.empty()) throw Error(ExitCode::usage, lines);
  model.from = path;
  return model;
}

ModelConfig model_from_hugging_face(const Files& files, const std::string& path) {
  std::string text;
  try {
    text = read_file(files, path, kLargestConfigJson);
  } catch (const FileError& e) {
    throw Error(ExitCode::usage, e.what());
  }
  return model_from_json(text, path);
}

}  // namespace dstrain
