#include "lib/config/yaml.h"

#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/exceptions.h>
#include <yaml-cpp/parser.h>

#include <new>
#include <sstream>
#include <unordered_map>

#include "lib/core/errors.h"

namespace dstrain {

const YamlNode* YamlNode::find(std::string_view name) const {
  for (const auto& child : children)
    if (child.key == name) return &child;
  return nullptr;
}

std::string shown(std::string_view text) {
  std::string out;
  for (char c : text.substr(0, 60)) out += static_cast<unsigned char>(c) < 0x20 || c == 0x7f ? '?' : c;
  while (text.size() > 60 && !out.empty() && (static_cast<unsigned char>(out.back()) & 0xc0) == 0x80) out.pop_back();
  if (text.size() > 60) {
    if (!out.empty() && static_cast<unsigned char>(out.back()) >= 0xc0) out.pop_back();
    out += "...";
  }
  return out;
}

namespace {

struct Stop {};  // the tree is too large to go on

class Builder final : public YAML::EventHandler {
 public:
  explicit Builder(std::vector<Problem>& problems) : problems_(problems) {}

  // The tree; of a text that broke off, what stands before the break.
  YamlNode take() {
    while (!stack_.empty()) close();
    return std::move(root_);
  }

  void OnDocumentStart(const YAML::Mark&) override {}
  void OnDocumentEnd() override {}
  void OnNull(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    properties(mark, "", anchor);
    leaf(node(YamlNode::Kind::null, mark));
  }
  void OnAlias(const YAML::Mark& mark, YAML::anchor_t) override {
    problem(mark, "aliases (*name) are not accepted; write the value out");
    leaf(node(YamlNode::Kind::null, mark));
  }
  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                const std::string& value) override {
    properties(mark, tag, anchor);
    YamlNode n = node(YamlNode::Kind::scalar, mark);
    n.text = value;
    n.quoted = tag != "?";
    leaf(std::move(n));
  }
  void OnSequenceStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                       YAML::EmitterStyle::value) override {
    properties(mark, tag, anchor);
    open(node(YamlNode::Kind::list, mark));
  }
  void OnSequenceEnd() override { close(); }
  void OnMapStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                  YAML::EmitterStyle::value) override {
    properties(mark, tag, anchor);
    open(node(YamlNode::Kind::map, mark));
  }
  void OnMapEnd() override { close(); }

 private:
  struct Level {
    YamlNode node;
    bool expects_key = false;
    std::string key;
    Mark key_mark;
    std::unordered_map<std::string, Mark> seen;
  };

  static Mark to_mark(const YAML::Mark& m) { return {m.line + 1, m.column + 1}; }

  std::string path() const {
    std::string p;
    for (const auto& level : stack_) {
      if (level.node.kind == YamlNode::Kind::list) p += format("[{}]", level.node.children.size());
      if (level.node.kind == YamlNode::Kind::map && !level.expects_key) p += (p.empty() ? "" : ".") + shown(level.key);
    }
    return p;
  }
  void problem(const YAML::Mark& mark, std::string message) {
    problems_.push_back({to_mark(mark), path(), std::move(message)});
  }
  void properties(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor) {
    if (anchor != YAML::NullAnchor) problem(mark, "anchors (&name) are not accepted; write the value where it is used");
    if (!tag.empty() && tag != "?" && tag != "!") problem(mark, format("tags ({}) are not accepted", shown(tag)));
  }
  YamlNode node(YamlNode::Kind kind, const YAML::Mark& mark) {
    if (++nodes_ > kYamlNodes) {
      problem(mark, format("more than {} values", kYamlNodes));
      throw Stop{};
    }
    YamlNode n;
    n.kind = kind;
    n.mark = to_mark(mark);
    return n;
  }

  bool at_key() const { return !stack_.empty() && stack_.back().expects_key; }

  void leaf(YamlNode n) {
    if (!at_key()) return add(std::move(n));
    Level& level = stack_.back();
    const bool named = n.kind == YamlNode::Kind::scalar && !n.text.empty();
    if (!named) problems_.push_back({n.mark, path(), "a key must be a name"});
    level.key = named ? n.text : "";
    level.key_mark = n.mark;
    level.expects_key = false;
    if (!named) return;
    if (n.text == "<<")
      problems_.push_back({n.mark, path(), "merge keys are not accepted; write the keys out"});
    else if (const auto [first, fresh] = level.seen.emplace(n.text, n.mark); !fresh)
      problems_.push_back(
          {n.mark, path(), format("given twice; first at {}:{}", first->second.line, first->second.column)});
  }
  void open(YamlNode n) {
    if (at_key()) {
      problems_.push_back({n.mark, path(), "a key must be a name, not a list or a mapping; is a bracket left open?"});
      throw Stop{};
    }
    if (stack_.size() >= kYamlDepth) {
      problems_.push_back({n.mark, path(), format("nested deeper than {} levels", kYamlDepth)});
      throw Stop{};
    }
    const bool map = n.kind == YamlNode::Kind::map;
    stack_.push_back({std::move(n), map, "", {}, {}});
  }
  void close() {
    YamlNode n = std::move(stack_.back().node);
    stack_.pop_back();
    add(std::move(n));
  }
  void add(YamlNode n) {
    if (stack_.empty()) {
      root_ = std::move(n);
      return;
    }
    Level& level = stack_.back();
    if (level.node.kind == YamlNode::Kind::map) {
      n.key = level.key;
      n.key_mark = level.key_mark;
      level.expects_key = true;
    }
    level.node.children.push_back(std::move(n));
  }

  std::vector<Problem>& problems_;
  std::vector<Level> stack_;
  YamlNode root_;
  int nodes_ = 0;
};

// yaml-cpp takes some bytes for its own end marks and guesses encodings, so the text is checked first.
bool plain_utf8(const std::string& text, std::vector<Problem>& problems) {
  Mark mark{1, 1};
  const auto bad = [&](const char* message) {
    problems.push_back({mark, "", message});
    return false;
  };
  if (text.rfind("\xef\xbb\xbf", 0) == 0) return bad("starts with a byte order mark; save it as plain UTF-8");
  for (std::size_t i = 0; i < text.size();) {
    const auto at = [&](std::size_t k) { return k < text.size() ? static_cast<unsigned char>(text[k]) : 0u; };
    const unsigned c = at(i);
    std::size_t n = 1;
    if (c >= 0x80) {
      n = c >= 0xc2 && c <= 0xdf ? 2 : (c & 0xf0u) == 0xe0 ? 3 : c >= 0xf0 && c <= 0xf4 ? 4 : 0;
      for (std::size_t k = 1; k < n; ++k)
        if ((at(i + k) & 0xc0u) != 0x80) n = 0;
      const unsigned second = at(i + 1);
      if (n == 0 || (c == 0xe0 && second < 0xa0) || (c == 0xed && second > 0x9f) || (c == 0xf0 && second < 0x90) ||
          (c == 0xf4 && second > 0x8f))
        return bad("not UTF-8 text");
    } else if ((c < 0x20 && c != '\n' && c != '\r' && c != '\t') || c == 0x7f) {
      return bad("a control character");
    }
    if (c == '\n') {
      ++mark.line;
      mark.column = 1;
    } else {
      mark.column += static_cast<int>(n);
    }
    i += n;
  }
  return true;
}

}  // namespace

YamlTree parse_yaml(const std::string& text, std::vector<Problem>& problems) {
  if (text.size() > kYamlBytes) {
    problems.push_back({{1, 1}, "", format("{} bytes; at most {} are accepted", text.size(), kYamlBytes)});
    return {};
  }
  if (!plain_utf8(text, problems)) return {};
  Builder builder(problems);
  try {
    std::istringstream in(text);
    YAML::Parser parser(in);
    if (!parser.HandleNextDocument(builder)) return {{}, true};
    Builder more(problems);
    if (parser && parser.HandleNextDocument(more))
      problems.push_back({more.take().mark, "", "more than one document; a job file is one"});
    return {builder.take(), true};
  } catch (const Stop&) {
  } catch (const YAML::Exception& e) {
    problems.push_back({e.mark.is_null() ? Mark{1, 1} : Mark{e.mark.line + 1, e.mark.column + 1}, "",
                        "not valid YAML: " + shown(e.msg)});
  } catch (const std::bad_alloc&) {  // says nothing of the file
    throw;
  } catch (const std::exception& e) {
    problems.push_back({{1, 1}, "", std::string("cannot be read as YAML: ") + shown(e.what())});
  }
  return {builder.take(), false};
}

}  // namespace dstrain
