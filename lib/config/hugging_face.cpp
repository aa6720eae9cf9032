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
  config.model = hugging_face_defaults(type.get<std::string>());
  ModelConfig& model = config.model;
  std::vector<std::string> errors;
  std::set<std::string, std::less<>> taken;  // our keys
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
