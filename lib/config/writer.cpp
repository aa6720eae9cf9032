#include "lib/config/writer.h"

#include <nlohmann/json.hpp>

#include "lib/config/values.h"

namespace dstrain {

namespace {

using Json = nlohmann::ordered_json;

std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    out += c;
  }
  return out + "\"";
}

std::string yaml(bool v) { return v ? "true" : "false"; }
std::string yaml(int v) { return format("{}", v); }
std::string yaml(std::int64_t v) { return format("{}", v); }
std::string yaml(std::uint64_t v) { return format("{}", v); }
// A point or an exponent with a point, so that other YAML readers see a number too.
std::string yaml(double v) {
  std::string text = real_text(v);
  if (const auto e = text.find('e'); text.find('.') == std::string::npos)
    text.insert(e == std::string::npos ? text.size() : e, ".0");
  return text;
}
std::string yaml(const std::string& v) { return quoted(v); }
template <class T, class F>
std::string yaml_list(const std::vector<T>& v, F&& item) {
  std::string out = "[";
  for (const auto& x : v) out += (out.size() > 1 ? ", " : "") + item(x);
  return out + "]";
}
std::string yaml(const std::vector<double>& v) {
  return yaml_list(v, [](double x) { return yaml(x); });
}
std::string yaml(const std::vector<DataSource>& v) {
  return yaml_list(v, [](const DataSource& s) {
    if (s.weight == 0 && s.epochs == 0) return quoted(s.path);
    std::string out = "{path: " + quoted(s.path);
    if (s.weight != 0) out += ", weight: " + yaml(s.weight);
    if (s.epochs != 0) out += ", epochs: " + yaml(s.epochs);
    return out + "}";
  });
}

// Text that stands for "not given" and that the reader would not accept.
template <class T>
bool absent(const T&) {
  return false;
}
bool absent(const std::string& v) { return v.empty(); }

struct Print {
  const std::string& model_type;
  const Loaded* loaded;  // for origins; may be null
  std::string out;
  std::string current;
  bool begun = false;

  void section(const char* name, const char*) {
    current = name;
    begun = false;
  }
  template <class T>
  void field(const Key& key, const T& value) {
    if (absent(value) || !has_meaning(key, model_type)) return;
    std::string line = format("  {}: {}", key.name, yaml(value));
    if (loaded) {
      const std::string path = current + "." + key.name;
      const bool changed = original(path) != yaml(value);
      line.resize(std::max<std::size_t>(line.size() + 2, 44), ' ');
      line += "# " + (changed ? std::string("derived") : loaded->origin(path).text);
    }
    if (!std::exchange(begun, true)) out += current + ":\n";  // only if it has a key
    out += line + "\n";
  }

 private:
  // The value of a key before resolve().
  struct Find {
    const std::string& path;
    std::string found, current;
    void section(const char* name, const char*) { current = name; }
    template <class T>
    void field(const Key& key, const T& value) {
      if (current + "." + key.name == path) found = yaml(value);
    }
  };
  std::string original(const std::string& path) const {
    Find find{path, {}, {}};
    visit_fields(loaded->config, find);
    return find.found;
  }
};

const char* type_text(bool) { return "true or false"; }
const char* type_text(int) { return "integer"; }
const char* type_text(std::int64_t) { return "integer"; }
const char* type_text(std::uint64_t) { return "integer in [0, 18446744073709551615]"; }
const char* type_text(double) { return "number"; }
const char* type_text(const std::string&) { return "text"; }
const char* type_text(const std::vector<double>&) { return "list of numbers"; }
const char* type_text(const std::vector<DataSource>&) { return "list of paths or {path, weight, epochs}"; }

struct Explain {
  const std::string& wanted;
  std::string out;
  std::string current;
  std::vector<std::string> names;

  void section(const char* name, const char* help) {
    names.emplace_back(current = name);
    if (wanted == current) out += format("{}: {}\n", current, help);
  }
  template <class T>
  void field(const Key& key, const T& value) {
    const std::string path = current + "." + key.name;
    names.push_back(path);
    if (wanted != path && wanted != current) return;
    std::string type = type_text(value);
    if (!key.choices.empty()) {
      type = key.choices.size() > 1 ? "one of " : "only ";
      for (std::size_t i = 0; i < key.choices.size(); ++i) type += (i ? ", " : "") + std::string(key.choices[i]);
    }
    const std::string range = range_text(key);
    const std::string preset = key.required ? "required" : absent(value) ? "no default" : "default " + yaml(value);
    out += format("{}\n  {}\n  {}{}{}; {}\n", path, key.help, type, range.empty() ? "" : " ", range, preset);
    if (*key.only) out += format("  {}\n", key.only);
    if (*key.model_type) out += format("  only for model.type {}\n", key.model_type);
  }
};

struct Schema {
  Json root = Json::object();
  Json* here = nullptr;  // the section last added, so that no insertion moves it
  bool in_model = false;

  void section(const char* name, const char* help) {
    in_model = std::string_view(name) == "model";
    here =
        &(root["properties"][name] = Json{{"type", "object"}, {"description", help}, {"additionalProperties", false}});
  }
  template <class T>
  void field(const Key& key, const T& value) {
    Json j = schema_of(key, value);
    j["description"] = key.help;
    if (!key.required && !absent(value)) j["default"] = Json::parse(yaml(value));
    // Model keys may come from model.from, so the schema cannot require them.
    if (key.required && !in_model) (*here)["required"].push_back(key.name);
    (*here)["properties"][key.name] = std::move(j);
  }

 private:
  static Json bounded(const char* type, const Key& key) {
    Json j{{"type", type}};
    const auto bound = [&](const char* name, double v) {
      if (v == static_cast<double>(static_cast<std::int64_t>(v)))
        j[name] = static_cast<std::int64_t>(v);
      else
        j[name] = v;
    };
    if (key.min > -1e300) bound(key.open_min ? "exclusiveMinimum" : "minimum", key.min);
    if (key.max < 1e300 && std::string_view(type) == "integer")
      bound(key.open_max ? "exclusiveMaximum" : "maximum", key.max);
    if (key.max < 1e300 && std::string_view(type) == "number")
      j[key.open_max ? "exclusiveMaximum" : "maximum"] = key.max;
    return j;
  }
  static Json schema_of(const Key& key, bool) {
    Json j{{"type", "boolean"}};
    if (!key.choices.empty()) j["const"] = true;
    return j;
  }
  static Json schema_of(const Key& key, int) { return bounded("integer", key); }
  static Json schema_of(const Key& key, std::int64_t) { return bounded("integer", key); }
  static Json schema_of(const Key&, std::uint64_t) {
    return {{"type", "integer"}, {"minimum", 0}, {"maximum", UINT64_MAX}};
  }
  static Json schema_of(const Key& key, double) { return bounded("number", key); }
  static Json schema_of(const Key& key, const std::string&) {
    Json j{{"type", "string"}};
    if (key.choices.empty())
      j["minLength"] = 1;
    else
      j["enum"] = std::vector<std::string>(key.choices.begin(), key.choices.end());
    return j;
  }
  static Json schema_of(const Key& key, const std::vector<double>&) {
    return {{"type", "array"},
            {"items", bounded("number", key)},
            {"minItems", key.may_be_empty ? 0 : key.count},
            {"maxItems", key.count}};
  }
  static Json schema_of(const Key&, const std::vector<DataSource>&) {
    const Json path{{"type", "string"}, {"minLength", 1}};
    const Json entry{
        {"type", "object"},
        {"properties",
         {{"path", path}, {"weight", bounded("number", kSourceWeight)}, {"epochs", bounded("number", kSourceEpochs)}}},
        {"required", Json::array({"path"})},
        {"additionalProperties", false}};
    return {{"type", "array"}, {"items", {{"anyOf", Json::array({path, entry})}}}};
  }
};

}  // namespace

std::string to_yaml(const Config& config) {
  Print print{config.model.type, nullptr, {}, {}};
  visit_fields(config, print);
  return print.out;
}

std::string print_config(const Config& config, const Loaded& loaded) {
  Print print{config.model.type, &loaded, {}, {}};
  visit_fields(config, print);
  return print.out;
}

std::string explain(const std::string& key) {
  const Config defaults;
  Explain visitor{key, {}, {}, {}};
  visit_fields(defaults, visitor);
  if (visitor.out.empty()) {
    const std::string near = nearest(key, visitor.names);
    fail(ExitCode::usage, "{}: unknown key{}", shown(key), near.empty() ? "" : "; did you mean '" + near + "'?");
  }
  return visitor.out;
}

std::string json_schema() {
  const Config defaults;
  Schema schema;
  schema.root["$schema"] = "http://json-schema.org/draft-07/schema#";
  schema.root["title"] = "dstrain job";
  schema.root["type"] = "object";
  schema.root["additionalProperties"] = false;
  schema.root["required"] = Json::array({"run", "model", "training"});
  schema.root["properties"] = Json::object();
  visit_fields(defaults, schema);
  return schema.root.dump(2) + "\n";
}

}  // namespace dstrain
