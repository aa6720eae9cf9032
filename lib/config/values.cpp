#include "lib/config/values.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <numeric>

#include "lib/core/errors.h"

namespace dstrain {

namespace {

constexpr std::size_t kTextBytes = 4096;  // of one string value

bool digit(char c) { return c >= '0' && c <= '9'; }

// Takes digits from the front; false when there is none.
bool take_digits(std::string_view& s) {
  const std::size_t n = static_cast<std::size_t>(std::find_if_not(s.begin(), s.end(), digit) - s.begin());
  s.remove_prefix(n);
  return n > 0;
}

bool integer_grammar(std::string_view s) {
  if (!s.empty() && (s[0] == '+' || s[0] == '-')) s.remove_prefix(1);
  if (s.size() > 1 && s[0] == '0') return false;
  return take_digits(s) && s.empty();
}

bool real_grammar(std::string_view s) {
  if (!s.empty() && (s[0] == '+' || s[0] == '-')) s.remove_prefix(1);
  if (s.size() > 1 && s[0] == '0' && digit(s[1])) return false;
  if (!take_digits(s)) return false;
  if (!s.empty() && s[0] == '.') {
    s.remove_prefix(1);
    if (!take_digits(s)) return false;
  }
  if (!s.empty() && (s[0] == 'e' || s[0] == 'E')) {
    s.remove_prefix(1);
    if (!s.empty() && (s[0] == '+' || s[0] == '-')) s.remove_prefix(1);
    if (!take_digits(s)) return false;
  }
  return s.empty();
}

template <class T>
std::optional<T> convert(std::string_view s) {
  if (!s.empty() && s[0] == '+') s.remove_prefix(1);
  T value{};
  const auto [end, error] = std::from_chars(s.data(), s.data() + s.size(), value);
  if (error != std::errc{} || end != s.data() + s.size()) return std::nullopt;
  return value;
}

std::string lower(std::string_view s) {
  std::string out(s);
  for (char& c : out)
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  return out;
}

bool is_one_of(const std::string& s, std::initializer_list<std::string_view> list) {
  return std::find(list.begin(), list.end(), s) != list.end();
}

// What another YAML reader would take a plain scalar for; "" when it is text for all of them.
const char* other_reading(std::string_view text) {
  const std::string s = lower(text);
  if (is_one_of(s, {"true", "false", "yes", "no", "on", "off", "y", "n"})) return "true or false";
  if (is_one_of(s, {"~", "null", ""})) return "nothing";
  std::string_view body = s;
  if (body[0] == '+' || body[0] == '-') body.remove_prefix(1);
  if (is_one_of(std::string(body), {".nan", ".inf", "nan", "inf", "infinity"})) return "a number";
  if (real_grammar(s)) return "a number";
  if (!body.empty() && digit(body[0]) && body.find_first_not_of("0123456789_.e+-") == std::string_view::npos &&
      std::count(body.begin(), body.end(), '-') < 2)
    return "a number";
  if (body.rfind("0x", 0) == 0 || body.rfind("0o", 0) == 0 || body.rfind("0b", 0) == 0) return "a number";
  return "";
}

// Why a scalar is not the number that it looks like.
std::string number_hint(std::string_view text) {
  const std::string s = lower(text);
  std::string_view body = s;
  if (!body.empty() && (body[0] == '+' || body[0] == '-')) body.remove_prefix(1);
  if (body.rfind("0x", 0) == 0 || body.rfind("0o", 0) == 0 || body.rfind("0b", 0) == 0) return "; numbers are decimal";
  if (is_one_of(std::string(body), {".nan", ".inf", "nan", "inf", "infinity"})) return "; numbers are finite";
  if (body.size() > 1 && body[0] == '0' && digit(body[1]))
    return "; no leading zeros: some readers take them for octal";
  if (!body.empty() && digit(body[0]) && body.find('_') != std::string_view::npos) return "; no '_' between digits";
  if (!body.empty() && (body[0] == '.' || body.back() == '.')) return "; a digit on both sides of the point";
  return "";
}

std::string found(const YamlNode& node) {
  switch (node.kind) {
    case YamlNode::Kind::map:
      return "a mapping";
    case YamlNode::Kind::list:
      return "a list";
    case YamlNode::Kind::null:
      return "nothing";
    case YamlNode::Kind::scalar:
      break;
  }
  return node.quoted ? format("the text \"{}\"", shown(node.text)) : format("'{}'", shown(node.text));
}

std::string because(const Key& key) { return *key.only ? std::string(": ") + key.only : ""; }

Mark place(const YamlNode& node) { return node.key_mark.line ? node.key_mark : node.mark; }

void complain(const YamlNode& node, const std::string& path, std::string message, std::vector<Problem>& problems) {
  problems.push_back({place(node), path, std::move(message)});
}

bool present(const YamlNode& node, const std::string& path, std::vector<Problem>& problems) {
  if (node.kind != YamlNode::Kind::null) return true;
  complain(node, path, "no value; leave the key out to take the default", problems);
  return false;
}

template <class T>
void read_number(const Key& key, const YamlNode& node, const std::string& path, T& value, const char* kind,
                 std::optional<T> (*parse)(std::string_view), bool (*grammar)(std::string_view),
                 std::vector<Problem>& problems) {
  if (!present(node, path, problems)) return;
  if (node.kind != YamlNode::Kind::scalar || node.quoted || !grammar(node.text)) {
    const std::string hint = node.kind == YamlNode::Kind::scalar && !node.quoted ? number_hint(node.text) : "";
    return complain(node, path, format("expected {}, found {}{}", kind, found(node), hint), problems);
  }
  const auto parsed = parse(node.text);
  if (!parsed || !in_range(key, static_cast<double>(*parsed))) {
    const std::string range = range_text(key);
    return complain(node, path,
                    format("{} is out of range; expected {}{}{}{}", shown(node.text), kind, range.empty() ? "" : " ",
                           range, because(key)),
                    problems);
  }
  value = *parsed;
}

}  // namespace

std::optional<std::int64_t> parse_integer(std::string_view text) {
  return integer_grammar(text) ? convert<std::int64_t>(text) : std::nullopt;
}
std::optional<std::uint64_t> parse_unsigned(std::string_view text) {
  return integer_grammar(text) ? convert<std::uint64_t>(text) : std::nullopt;
}
std::optional<double> parse_real(std::string_view text) {
  if (!real_grammar(text)) return std::nullopt;
  const auto value = convert<double>(text);
  if (!value || !std::isfinite(*value)) return std::nullopt;
  return *value + 0.0;  // -0 is 0: what is written back must read as itself
}

std::string real_text(double value) {
  std::array<char, 40> buffer{};
  const auto [end, error] = std::to_chars(buffer.data(), buffer.data() + buffer.size(), value);
  check(error == std::errc{}, "a double does not fit {} characters", buffer.size());
  return {buffer.data(), end};
}

std::string range_text(const Key& key) {
  const bool low = std::isfinite(key.min), high = std::isfinite(key.max);
  if (low && high && key.min == key.max) return "that is " + real_text(key.min);
  if (low && high) {
    // Wide bounds only keep arithmetic safe; they are shown as integers.
    const auto text = [](double v) {
      return v == std::floor(v) && std::abs(v) < 1e15 ? format("{}", static_cast<std::int64_t>(v)) : real_text(v);
    };
    return format("in {}{}, {}{}", key.open_min ? "(" : "[", text(key.min), text(key.max), key.open_max ? ")" : "]");
  }
  if (low) return (key.open_min ? "above " : "at least ") + real_text(key.min);
  if (high) return (key.open_max ? "below " : "at most ") + real_text(key.max);
  return "";
}

bool in_range(const Key& key, double value) {
  if (!std::isfinite(value)) return false;
  return (key.open_min ? value > key.min : value >= key.min) && (key.open_max ? value < key.max : value <= key.max);
}

std::string nearest(std::string_view text, const std::vector<std::string>& candidates) {
  if (text.empty() || text.size() > 64) return "";
  std::string best;
  std::size_t best_distance = std::max<std::size_t>(1, text.size() / 3) + 1;
  for (const auto& c : candidates) {
    // Edit distance in which a swap of neighbours counts one.
    const std::size_t n = text.size(), m = c.size();
    if (std::max(n, m) - std::min(n, m) >= best_distance) continue;  // so many letters more or fewer
    std::vector<std::size_t> two(m + 1), one(m + 1), row(m + 1);
    std::iota(one.begin(), one.end(), 0u);
    for (std::size_t i = 1; i <= n; ++i) {
      row[0] = i;
      for (std::size_t j = 1; j <= m; ++j) {
        row[j] = std::min({one[j] + 1, row[j - 1] + 1, one[j - 1] + (text[i - 1] == c[j - 1] ? 0u : 1u)});
        if (i > 1 && j > 1 && text[i - 1] == c[j - 2] && text[i - 2] == c[j - 1])
          row[j] = std::min(row[j], two[j - 2] + 1);
      }
      std::swap(two, one);
      std::swap(one, row);
    }
    if (one[m] < best_distance) {
      best_distance = one[m];
      best = c;
    }
  }
  return best;
}

void read_value(const Key& key, const YamlNode& node, const std::string& path, bool& value,
                std::vector<Problem>& problems) {
  if (!present(node, path, problems)) return;
  const bool yes = node.text == "true", no = node.text == "false";
  if (node.kind != YamlNode::Kind::scalar || node.quoted || !(yes || no))
    return complain(node, path, format("expected true or false, found {}", found(node)), problems);
  if (!key.choices.empty() && key.choices[0] != node.text)
    return complain(node, path, format("only {} is accepted{}", std::string(key.choices[0]), because(key)), problems);
  value = yes;
}

void read_value(const Key& key, const YamlNode& node, const std::string& path, std::int64_t& value,
                std::vector<Problem>& problems) {
  read_number<std::int64_t>(key, node, path, value, "an integer", parse_integer, integer_grammar, problems);
}

void read_value(const Key& key, const YamlNode& node, const std::string& path, int& value,
                std::vector<Problem>& problems) {
  std::int64_t wide = value;
  read_value(key, node, path, wide, problems);
  value = static_cast<int>(wide);
}

void read_value(const Key& key, const YamlNode& node, const std::string& path, std::uint64_t& value,
                std::vector<Problem>& problems) {
  read_number<std::uint64_t>(key, node, path, value, "an integer in [0, 18446744073709551615]", parse_unsigned,
                             integer_grammar, problems);
}

void read_value(const Key& key, const YamlNode& node, const std::string& path, double& value,
                std::vector<Problem>& problems) {
  read_number<double>(key, node, path, value, "a number", parse_real, real_grammar, problems);
}

void read_value(const Key& key, const YamlNode& node, const std::string& path, std::string& value,
                std::vector<Problem>& problems) {
  if (!present(node, path, problems)) return;
  if (node.kind != YamlNode::Kind::scalar)
    return complain(node, path, format("expected text, found {}", found(node)), problems);
  if (!node.quoted)
    if (const char* other = other_reading(node.text); *other)
      return complain(node, path,
                      format("expected text, found '{}', which reads as {}; put it in quotes", shown(node.text), other),
                      problems);
  if (!key.choices.empty()) {
    std::string list;
    std::vector<std::string> names;
    for (const auto c : key.choices) {
      if (c == node.text) {
        value = node.text;
        return;
      }
      names.emplace_back(c);
      list += (list.empty() ? "" : ", ") + std::string(c);
    }
    const std::string near = nearest(node.text, names);
    return complain(node, path,
                    format("expected {}{}, found '{}'{}{}", names.size() > 1 ? "one of " : "", list, shown(node.text),
                           because(key), near.empty() || names.size() == 1 ? "" : "; did you mean '" + near + "'?"),
                    problems);
  }
  if (node.text.empty() || node.text.size() > kTextBytes)
    return complain(node, path, format("expected text of 1 to {} bytes, found {}", kTextBytes, node.text.size()),
                    problems);
  for (const char c : node.text)
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f)
      return complain(node, path, "a control character in text", problems);
  value = node.text;
}

void read_value(const Key& key, const YamlNode& node, const std::string& path, std::vector<double>& value,
                std::vector<Problem>& problems) {
  if (!present(node, path, problems)) return;
  if (node.kind != YamlNode::Kind::list ||
      (key.count && node.children.size() != key.count && !(key.may_be_empty && node.children.empty())))
    return complain(node, path,
                    format("expected a list of {} numbers, found {}", key.count,
                           node.kind == YamlNode::Kind::list ? format("{}", node.children.size()) : found(node)),
                    problems);
  std::vector<double> list(node.children.size());
  const std::size_t before = problems.size();
  for (std::size_t i = 0; i < list.size(); ++i)
    read_value(key, node.children[i], format("{}[{}]", path, i), list[i], problems);
  if (problems.size() == before) value = list;
}

void read_value(const Key& key, const YamlNode& node, const std::string& path, std::vector<DataSource>& value,
                std::vector<Problem>& problems) {
  if (!present(node, path, problems)) return;
  if (node.kind != YamlNode::Kind::list)
    return complain(node, path, format("expected a list of paths, found {}", found(node)), problems);
  std::vector<DataSource> list;
  const std::size_t before = problems.size();
  for (std::size_t i = 0; i < node.children.size(); ++i) {
    const YamlNode& item = node.children[i];
    const std::string item_path = format("{}[{}]", path, i);
    DataSource source;
    if (item.kind != YamlNode::Kind::map) {
      read_value(key, item, item_path, source.path, problems);
    } else {
      for (const auto& child : item.children) {
        const std::string child_path = item_path + "." + shown(child.key);
        if (child.key == "path") {
          read_value(key, child, child_path, source.path, problems);
        } else if (child.key == "weight") {
          read_value(kSourceWeight, child, child_path, source.weight, problems);
        } else if (child.key == "epochs") {
          read_value(kSourceEpochs, child, child_path, source.epochs, problems);
        } else {
          const std::string near = nearest(child.key, {"path", "weight", "epochs"});
          complain(child, child_path,
                   near.empty() ? "unknown key; path, weight and epochs are known here"
                                : "unknown key; did you mean '" + near + "'?",
                   problems);
        }
      }
      if (!item.find("path")) complain(item, item_path + ".path", "missing: a path or a glob of token files", problems);
    }
    list.push_back(source);
  }
  if (problems.size() == before) value = list;
}

}  // namespace dstrain
