#include "lib/config/hugging_face.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <set>
#include <string_view>
#include <vector>

#include "lib/config/hugging_face_keys.h"
#include "lib/config/values.h"

namespace dstrain {

namespace {

using Json = nlohmann::json;

constexpr int kJsonDepth = 32;

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

// Names of one and the same function.
Json plain_activation(const Json& name) {
  if (name == Json("swish")) return "silu";
  if (name == Json("gelu_fast") || name == Json("gelu_accurate")) return "gelu_pytorch_tanh";
  if (name == Json("gelu_python")) return "gelu";
  return name;
}

// Keys of a scaled rotary embedding; ours have "rope_" before them.
constexpr std::string_view kScaledRope[] = {"factor",           "original_max_position_embeddings",
                                            "beta_fast",        "beta_slow",
                                            "mscale",           "mscale_all_dim",
                                            "attention_factor", "truncate",
                                            "low_freq_factor",  "high_freq_factor"};

// What the type does not read is as if it were not there, as in Hugging Face.
void forget_unread(ModelConfig& m) {
  const ModelConfig plain;
  const bool yarn = m.rope_type == "yarn", llama3 = m.rope_type == "llama3", scaled = m.rope_type != "default";
  if (!scaled) m.rope_factor = plain.rope_factor;
  if (!yarn && !llama3) m.rope_original_max_position_embeddings = plain.rope_original_max_position_embeddings;
  if (!yarn) {
    m.rope_beta_fast = plain.rope_beta_fast;
    m.rope_beta_slow = plain.rope_beta_slow;
    m.rope_mscale = plain.rope_mscale;
    m.rope_attention_factor = plain.rope_attention_factor;
    m.rope_truncate = plain.rope_truncate;
  }
  if (!yarn && !(m.deepseek() && scaled)) m.rope_mscale_all_dim = plain.rope_mscale_all_dim;
  if (!llama3) {
    m.rope_low_freq_factor = plain.rope_low_freq_factor;
    m.rope_high_freq_factor = plain.rope_high_freq_factor;
  }
}

// rope_scaling (transformers 4) or rope_parameters (5): what the rotary embedding is.
void read_rope(const Json& value, const std::string& name, const Json& root, ModelConfig& model,
               std::vector<std::string>& errors) {
  if (value.is_null()) return;
  if (!value.is_object()) {
    errors.push_back(format("{}: expected a mapping, found {}", name, shown_json(value)));
    return;
  }
  const std::size_t before = errors.size();
  const auto read_into = [&](const std::string& path, std::string_view ours, const Json& v) {
    Assign reader{ours, v, {}};
    Config config;
    config.model = model;
    visit_fields(config, reader);
    if (!reader.error.empty()) errors.push_back(path + ": " + reader.error);
    model = config.model;
  };
  for (const auto& [key, v] : value.items()) {
    const std::string path = name + "." + shown(key);
    if (key == "rope_type" || key == "type") {
      const std::string_view known[] = {"default", "linear", "dynamic", "yarn", "llama3"};
      if (std::find(std::begin(known), std::end(known), v) == std::end(known))
        errors.push_back(
            format("{}: {} is not supported; only default, linear, dynamic, yarn and llama3 are", path, shown_json(v)));
      else if (key == "type" && value.value("rope_type", v) != v)
        errors.push_back(
            format("{}: {} differs from rope_type: {}", path, shown_json(v), shown_json(value["rope_type"])));
      else
        model.rope_type = v.get<std::string>();
    } else if (std::find(std::begin(kScaledRope), std::end(kScaledRope), std::string_view(key)) !=
               std::end(kScaledRope)) {
      if (key == "attention_factor" && v == Json(0))
        errors.push_back(format("{}: {} is not supported", path, shown_json(v)));
      else if (!v.is_null())
        read_into(path, "rope_" + key, v);
    } else if (key == "rope_theta") {
      if (root.contains("rope_theta") && root["rope_theta"] != v)
        errors.push_back(
            format("{}: {} differs from rope_theta: {}", path, shown_json(v), shown_json(root["rope_theta"])));
      else
        read_into(path, "rope_theta", v);
    } else if (key != "partial_rotary_factor" || !v.is_number() || v.get<double>() != 1.0) {
      errors.push_back(format("{}: {} is not supported", path, shown_json(v)));
    }
  }
  const auto needed = [&](const char* key) {
    if (!value.contains(key) || value[key].is_null())
      errors.push_back(format("{}.{}: missing; {} has no default", name, key, model.rope_type));
  };
  if (errors.size() == before && model.rope_type != "default") needed("factor");
  if (errors.size() == before && model.rope_type == "llama3") {
    needed("low_freq_factor");
    needed("high_freq_factor");
  }
  forget_unread(model);
}

// PyTorch's padding_idx: negative ones count from the vocabulary's end. One that is no row of the embedding is none.
void read_pad_token(const Json& value, ModelConfig& m, std::vector<std::string>& errors) {
  if (!value.is_number_integer()) {
    errors.push_back(format("pad_token_id: expected an integer or null, found {}", shown_json(value)));
    return;
  }
  const auto id = value.get<std::int64_t>();
  m.pad_token_id = id < 0 ? id + m.vocab_size : id;
  if (m.pad_token_id < 0 || m.pad_token_id >= m.vocab_size) m.pad_token_id = -1;
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
  config.model = hugging_face_defaults(type.get<std::string>());
  ModelConfig& model = config.model;
  std::vector<std::string> errors;
  Json pad_token;
  const std::vector<KeyName> names = key_names(model.type);
  const auto first_use = [&](std::string_view ours) {
    for (const auto& n : names)
      if (n.ours == ours && root.contains(std::string(n.json))) return n.json;
    return std::string_view{};
  };
  for (const auto& [key, value] : root.items()) {
    if (model.type == "deepseek_v2" && value.is_null() && (key == "n_group" || key == "topk_group")) continue;  // one
    const auto name = std::find_if(names.begin(), names.end(),
                                   [&, k = std::string_view(key)](const KeyName& n) { return n.json == k; });
    if (name != names.end()) {
      const std::string first(first_use(name->ours));
      if (first != key && root[first] != value) {
        errors.push_back(format("{}: {} differs from {}: {}", key, shown_json(value), first, shown_json(root[first])));
        continue;
      }
      const Json plain = name->ours == "hidden_act" ? plain_activation(value) : value;
      Assign assign{name->ours, plain, {}};
      visit_fields(config, assign);
      if (!assign.error.empty()) errors.push_back(key + ": " + assign.error);
      continue;
    }
    if (llama && key == "pad_token_id") {
      pad_token = value;
      continue;
    }
    if (llama && (key == "rope_scaling" || key == "rope_parameters")) {
      const Json other = root.value(key == "rope_scaling" ? "rope_parameters" : key, Json());
      if (!value.is_null() && !other.is_null() && other != value)
        errors.push_back(format("{}: {} differs from rope_parameters: {}", key, shown_json(value), shown_json(other)));
      else
        read_rope(value, key, root, model, errors);
      continue;
    }
    if (model.type == "deepseek_v2" && key == "num_nextn_predict_layers" && (value == Json(0) || value.is_null()))
      continue;
    if (key == "quantization_config") {
      read_quantization(value, errors);
      continue;
    }
    bool known = harmless_key(model.type, key);
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
  if (!pad_token.is_null()) read_pad_token(pad_token, model, errors);
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
