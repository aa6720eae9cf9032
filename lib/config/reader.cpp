#include "lib/config/reader.h"

#include <algorithm>
#include <map>
#include <tuple>

#include "lib/config/hugging_face.h"
#include "lib/config/values.h"

namespace dstrain {

namespace {

constexpr std::size_t kMaxLines = 100;  // of an error report

// A problem with the place that its line starts with. `source`: 0 the file, then the overrides in order.
struct Placed {
  std::size_t source;
  Mark mark;
  std::string line;
};

// Every key, in the order of fields.h.
struct Names {
  std::vector<std::string> sections;
  std::vector<std::string> paths;
  std::vector<std::string> required;
  std::map<std::string, std::vector<std::string>> keys;  // of each section
  std::string current;

  void section(const char* name, const char*) { sections.emplace_back(current = name); }
  template <class T>
  void field(const Key& key, T&) {
    paths.push_back(current + "." + key.name);
    keys[current].emplace_back(key.name);
    if (key.required) required.push_back(paths.back());
  }
};

const Names& all_names() {
  static const Names names = [] {
    Config config;
    Names made;
    visit_fields(config, made);
    return made;
  }();
  return names;
}

std::string unknown_key(const Names& names, const std::string& section, const std::string& key) {
  const std::string path = section.empty() ? key : section + "." + key;
  for (const auto& absent : kAbsentKeys)
    if (path == absent.path) return format("not in this version: {}", absent.feature);
  const std::string near = nearest(key, section.empty() ? names.sections : names.keys.at(section));
  std::string elsewhere;
  for (const auto& p : names.paths)
    if (p.compare(p.find('.') + 1, p.npos, key) == 0) elsewhere = p;
  if (!elsewhere.empty() && (near.empty() || near != key)) return format("unknown key; did you mean '{}'?", elsewhere);
  return near.empty() ? "unknown key" : format("unknown key; did you mean '{}'?", near);
}

// Reads one tree (the file's, or an override's of one key) into the config.
struct Apply {
  const YamlNode& root;
  Loaded& loaded;
  std::vector<Problem>& problems;
  Origin::Kind kind;
  std::string place;  // of an override
  const YamlNode* here = nullptr;
  std::string current;

  void section(const char* name, const char*) {
    current = name;
    here = root.find(name);
    if (!here || here->kind == YamlNode::Kind::map) return;
    problems.push_back({here->key_mark, current,
                        here->kind == YamlNode::Kind::null ? "no keys under it; leave it out, or write {}"
                                                           : "expected a mapping of keys to values"});
    here = nullptr;
  }
  template <class T>
  void field(const Key& key, T& value) {
    if (!here) return;
    const YamlNode* node = here->find(key.name);
    if (!node) return;
    const std::string path = current + "." + key.name;
    read_value(key, *node, path, value, problems);
    loaded.origins[path] =
        kind == Origin::Kind::file
            ? Origin{kind, format("{}:{}:{}", loaded.path, node->key_mark.line, node->key_mark.column),
                     node->key_mark.line, node->key_mark.column}
            : Origin{kind, place};
  }
};

void report_unknown(const YamlNode& root, const Names& names, std::vector<Problem>& problems) {
  if (root.kind != YamlNode::Kind::map) return;
  for (const auto& section : root.children) {
    const auto known = std::find(names.sections.begin(), names.sections.end(), section.key);
    if (section.key.empty() || section.key == "<<") continue;
    if (known == names.sections.end()) {
      problems.push_back({section.key_mark, shown(section.key), unknown_key(names, "", section.key)});
      continue;
    }
    if (section.kind != YamlNode::Kind::map) continue;
    const auto& keys = names.keys.at(section.key);
    for (const auto& child : section.children)
      if (!child.key.empty() && child.key != "<<" && std::find(keys.begin(), keys.end(), child.key) == keys.end())
        problems.push_back(
            {child.key_mark, section.key + "." + shown(child.key), unknown_key(names, section.key, child.key)});
  }
}

[[noreturn]] void throw_all(std::vector<Placed> all) {
  std::stable_sort(all.begin(), all.end(), [](const Placed& a, const Placed& b) {
    return std::tuple(a.source, a.mark.line, a.mark.column) < std::tuple(b.source, b.mark.line, b.mark.column);
  });
  std::string text;
  for (std::size_t i = 0; i < all.size(); ++i) {
    if (i == kMaxLines) {
      text += format("\n... and {} more", all.size() - i);
      break;
    }
    text += (i ? "\n" : "") + all[i].line;
  }
  throw Error(ExitCode::usage, text);
}

// An override as the tree that it would be in a file. Empty, with a problem, when it is not one.
YamlNode parse_override(const std::string& text, const Names& names, std::vector<Problem>& problems) {
  const auto bad = [&](const std::string& path, const std::string& message) {
    problems.push_back({{}, path, message});
    return YamlNode{};
  };
  const auto equals = text.find('=');
  if (equals == std::string::npos || equals == 0) return bad("", "expected section.key=value");
  const std::string path = text.substr(0, equals);
  if (std::find(names.paths.begin(), names.paths.end(), path) == names.paths.end()) {
    const auto dot = path.find('.');
    const bool section = std::find(names.sections.begin(), names.sections.end(), path) != names.sections.end();
    if (section) return bad(path, "a section; name one of its keys");
    const std::string head = path.substr(0, dot);
    const bool known = dot != std::string::npos &&
                       std::find(names.sections.begin(), names.sections.end(), head) != names.sections.end();
    return bad(shown(path), known ? unknown_key(names, head, path.substr(dot + 1)) : unknown_key(names, "", head));
  }
  YamlNode leaf = parse_yaml(text.substr(equals + 1), problems).root;
  leaf.key = path.substr(path.find('.') + 1);
  YamlNode section, root;
  section.kind = root.kind = YamlNode::Kind::map;
  section.key = path.substr(0, path.find('.'));
  section.children.push_back(std::move(leaf));
  root.children.push_back(std::move(section));
  return root;
}

}  // namespace

const Origin& Loaded::origin(const std::string& key) const {
  static const Origin preset{Origin::Kind::defaulted, "default"};
  const auto given = origins.find(key);
  return given == origins.end() ? preset : given->second;
}

Loaded parse_config(const Files& files, const std::string& path, const std::string& text,
                    const std::vector<std::string>& overrides) {
  Loaded loaded;
  loaded.path = path;
  const Names& names = all_names();

  std::vector<Placed> all;
  const auto place = [&](std::size_t source, std::vector<Problem>& problems) {
    for (auto& p : problems) {
      const std::string start = source == 0 ? format("{}:{}:{}", path, p.mark.line, p.mark.column)
                                            : format("override '{}'", shown(overrides[source - 1]));
      if (source > 0) p.mark = {};
      all.push_back({source, p.mark, start + (p.path.empty() ? "" : ": " + p.path) + ": " + p.message});
    }
    problems.clear();
  };

  std::vector<Problem> problems;
  YamlTree file = parse_yaml(text, problems);
  const bool complete = file.complete;
  std::vector<YamlNode> trees;
  trees.push_back(std::move(file.root));
  if (complete && trees[0].kind == YamlNode::Kind::null)
    problems.push_back({{1, 1}, "", "the file is empty; a job file has at least run, model and training"});
  else if (complete && trees[0].kind != YamlNode::Kind::map)
    problems.push_back({trees[0].mark, "", "expected sections (run, model, ...), found a list or a value"});
  report_unknown(trees[0], names, problems);
  place(0, problems);
  for (const auto& o : overrides) {
    trees.push_back(parse_override(o, names, problems));
    place(trees.size() - 1, problems);
  }

  bool from_named = false;
  // model.from comes first, whatever the order, so that every other key overrides it.
  for (std::size_t i = trees.size(); i-- > 0;) {
    const YamlNode* model = trees[i].find("model");
    const YamlNode* from = model ? model->find("from") : nullptr;
    if (!from) continue;
    from_named = true;
    if (from->kind != YamlNode::Kind::scalar || from->text.empty()) continue;
    try {
      loaded.config.model = model_from_hugging_face(files, from->text);
      for (const auto& key : names.paths)
        if (key.rfind("model.", 0) == 0) loaded.origins[key] = {Origin::Kind::config_json, from->text};
    } catch (const Error& e) {
      problems.push_back({from->key_mark, "model.from", e.what()});
      place(i, problems);
    }
    break;
  }

  for (std::size_t i = 0; i < trees.size(); ++i) {
    Apply apply{trees[i], loaded, problems, i == 0 ? Origin::Kind::file : Origin::Kind::overridden,
                i == 0 ? "" : format("override '{}'", shown(overrides[i - 1]))};
    visit_fields(loaded.config, apply);
    place(i, problems);
  }

  if (complete && trees[0].kind == YamlNode::Kind::map) {
    for (const auto& key : names.required) {
      if (loaded.origin(key).kind != Origin::Kind::defaulted) continue;
      if (from_named && key.rfind("model.", 0) == 0) continue;
      const YamlNode* section = trees[0].find(key.substr(0, key.find('.')));
      problems.push_back({section ? section->key_mark : Mark{1, 1}, key, "missing"});
    }
    place(0, problems);
  }
  if (!all.empty()) throw_all(std::move(all));

  ModelConfig& model = loaded.config.model;
  if (model.type == "gpt2" && loaded.origin("model.tie_word_embeddings").kind == Origin::Kind::defaulted)
    model.tie_word_embeddings = true;
  return loaded;
}

Loaded load_config(const Files& files, const std::string& path, const std::vector<std::string>& overrides) {
  std::string text;
  try {
    text = read_file(files, path, kYamlBytes);
  } catch (const FileError& e) {
    throw Error(ExitCode::usage, e.what());
  }
  return parse_config(files, path, text, overrides);
}

}  // namespace dstrain
