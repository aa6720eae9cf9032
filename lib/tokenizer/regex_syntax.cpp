// From Oniguruma's syntax to PCRE2's.

#include <algorithm>
#include <string>

#include "lib/core/errors.h"
#include "lib/tokenizer/regex.h"
#include "lib/tokenizer/unicode_tables.h"
#include "lib/tokenizer/utf8.h"

namespace dstrain {

namespace {

constexpr const char* kSpace =
    "\\x{9}-\\x{d}\\x{20}\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}";
constexpr std::size_t kMaxPattern = 1u << 16;
constexpr int kGroupDepth = 100;

class Translator {
 public:
  Translator(std::string_view in, const std::string& place) : in_(in), place_(place) {}

  std::string run() {
    require(in_.size() <= kMaxPattern, ExitCode::data, "{}: a regex of {} bytes; at most {} are read", place_,
            in_.size(), kMaxPattern);
    while (at_ < in_.size()) step();
    return out_;
  }

 private:
  std::string_view in_;
  const std::string& place_;
  std::size_t at_ = 0;
  std::string out_;
  std::size_t atom_ = 0;  // where the last atom starts in out_
  // The open groups: where they start, and whether they are without case.
  struct Group {
    std::size_t start;
    bool caseless;
  };
  std::vector<Group> open_;
  char letter_ = '\0';  // the ASCII letter just before, in a group without case

  [[noreturn]] void refuse(std::string_view what, std::size_t at) {
    fail(ExitCode::data, "{}: {} at byte {} of the regex is not supported", place_, what, at);
  }
  bool caseless() const { return !open_.empty() && open_.back().caseless; }

  // Oniguruma's characters without case may be several: ss is sharp s, fi a ligature. PCRE2's are not.
  void check_folding(std::uint32_t code, std::size_t at) {
    if (!caseless()) return;
    if ((code >= 0x80 && code < 0x600) || (code >= 0x1e00 && code < 0x2000) || (code >= 0xfb00 && code < 0xfb18))
      refuse("this character in a group without case", at);
    const char c = code < 0x80 ? static_cast<char>(code | 0x20) : '\0';
    for (const std::string_view pair : {"ss", "ff", "fi", "fl", "st"})
      if (letter_ == pair[0] && c == pair[1]) refuse("'" + std::string(pair) + "' in a group without case", at);
    letter_ = c;
  }

  char peek(std::size_t ahead = 0) const { return at_ + ahead < in_.size() ? in_[at_ + ahead] : '\0'; }

  const unicode::Property& property(std::string_view name, std::size_t at) {
    for (const auto& p : unicode::kProperties)
      if (name == p.name) return p;
    refuse("\\p{" + std::string(name) + "}", at);
  }

  // A class's contents for a property.
  static std::string inside(const unicode::Property& p) { return std::string("\\p{") + p.pcre2 + "}" + p.added; }
  static std::string word() {
    const auto find = [](const char* name) {
      return std::find_if(unicode::kProperties.begin(), unicode::kProperties.end(),
                          [&](const auto& p) { return std::string_view(name) == p.name; });
    };
    // Oniguruma's \w: letters, marks, decimal digits, connectors, letter numbers, and circled and squared letters.
    static const std::string text =
        inside(*find("L")) + inside(*find("M")) + inside(*find("Nd")) + inside(*find("Nl")) + inside(*find("Pc")) +
        "\\x{b2}\\x{b3}\\x{b9}\\x{bc}-\\x{be}\\x{24b6}-\\x{24e9}\\x{1f130}-\\x{1f149}\\x{1f150}-\\x{1f169}"
        "\\x{1f170}-\\x{1f189}";
    return text;
  }

  // Reads what follows a backslash and appends it, in a class or outside.
  void escape(bool in_class) {
    const std::size_t start = at_++;
    if (at_ >= in_.size()) refuse("a backslash", start);
    const char c = in_[at_++];
    const auto set = [&](const std::string& contents, bool negated) {
      if (in_class && negated) refuse(in_.substr(start, at_ - start), start);
      out_ += in_class ? contents : (negated ? "[^" : "[") + contents + "]";
    };
    switch (c) {
      case 's':
        return set(kSpace, false);
      case 'S':
        return set(kSpace, true);
      case 'd':
        return set(inside(property("Nd", start)), false);
      case 'D':
        return set(inside(property("Nd", start)), true);
      case 'w':
        return set(word(), false);
      case 'W':
        return set(word(), true);
      case 'h':
        return set("0-9a-fA-F", false);
      case 'H':
        return set("0-9a-fA-F", true);
      case 'v':
        out_ += "\\x{b}";
        return;
      case 'b':
      case 'B': {
        if (in_class) {
          if (c == 'B') refuse("\\B in a class", start);
          out_ += "\\x{8}";
          return;
        }
        const std::string w = "[" + word() + "]";
        out_ += c == 'b' ? "(?:(?<=" + w + ")(?!" + w + ")|(?<!" + w + ")(?=" + w + "))"
                         : "(?:(?<=" + w + ")(?=" + w + ")|(?<!" + w + ")(?!" + w + "))";
        return;
      }
      case 'p':
      case 'P': {
        if (peek() != '{') refuse(in_.substr(start, 2), start);
        const auto close = in_.find('}', at_);
        if (close == std::string_view::npos) refuse("\\p without '}'", start);
        std::string_view name = in_.substr(at_ + 1, close - at_ - 1);
        bool negated = c == 'P';
        if (!name.empty() && name[0] == '^') {
          negated = !negated;
          name.remove_prefix(1);
        }
        at_ = close + 1;
        return set(inside(property(name, start)), negated);
      }
      case 'u': {
        if (caseless()) refuse("\\u in a group without case", start);
        if (at_ + 4 > in_.size()) refuse("\\u", start);
        for (int k = 0; k < 4; ++k)
          if (std::string_view("0123456789abcdefABCDEF").find(in_[at_ + static_cast<std::size_t>(k)]) ==
              std::string_view::npos)
            refuse("\\u", start);
        out_ += "\\x{" + std::string(in_.substr(at_, 4)) + "}";
        at_ += 4;
        return;
      }
      case 'x': {
        if (caseless()) refuse("\\x in a group without case", start);
        out_ += "\\x";
        if (peek() != '{') {
          std::size_t digits = 0;
          while (digits < 2 &&
                 std::string_view("0123456789abcdefABCDEF").find(peek(digits)) != std::string_view::npos &&
                 peek(digits) != '\0')
            ++digits;
          // Two digits above 7f would be a raw byte.
          if (digits == 0 || (digits == 2 && peek() > '7')) refuse("\\x", start);
          out_ += "{" + std::string(in_.substr(at_, digits)) + "}";
          at_ += digits;
          return;
        }
        const auto close = in_.find('}', at_);
        if (close == std::string_view::npos || close - at_ > 8 ||
            in_.substr(at_, close - at_).find_first_of(" ,-") != std::string_view::npos)
          refuse("\\x{", start);
        out_ += in_.substr(at_, close + 1 - at_);
        at_ = close + 1;
        return;
      }
      case 't':
      case 'n':
      case 'r':
      case 'f':
      case 'a':
      case 'e':
        out_.append({'\\', c});
        return;
      case 'A':
      case 'Z':
      case 'z':
      case 'G':
        if (in_class) refuse(in_.substr(start, 2), start);
        out_.append({'\\', c});
        return;
      default:
        break;
    }
    const auto u = static_cast<unsigned char>(c);
    if ((c >= '1' && c <= '9' && !in_class && !(peek() >= '0' && peek() <= '9'))) {
      out_.append({'\\', c});  // a reference to a group
      return;
    }
    if ((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9')) refuse(in_.substr(start, 2), start);
    if (u >= 0x80) {
      check_folding(utf8::decode(in_, at_ - 1).code, start);
      out_ += c;
      copy_tail();
      return;
    }
    out_.append({'\\', c});
  }

  void copy_tail() {
    while (at_ < in_.size() && (static_cast<unsigned char>(in_[at_]) & 0xc0u) == 0x80) out_ += in_[at_++];
  }

  void character_class() {
    const std::size_t start = at_;
    out_ += in_[at_++];
    if (peek() == '^') out_ += in_[at_++];
    if (peek() == ']') refuse("']' first in a class", at_);
    while (true) {
      if (at_ >= in_.size()) refuse("a class without ']'", start);
      const char c = in_[at_];
      if (c == ']') break;
      if (c == '[') refuse("a class in a class", at_);
      if (c == '&' && peek(1) == '&') refuse("'&&' in a class", at_);
      if (c == '\\') {
        escape(true);
        continue;
      }
      if (static_cast<unsigned char>(c) >= 0xc0) check_folding(utf8::decode(in_, at_).code, at_);
      out_ += c;
      ++at_;
    }
    letter_ = '\0';
    out_ += in_[at_++];
  }

  void group() {
    const std::size_t start = at_;
    if (static_cast<int>(open_.size()) >= kGroupDepth) refuse("a group nested so deeply", start);
    open_.push_back({out_.size(), caseless()});
    if (peek(1) != '?') {
      if (peek(1) == '*') refuse("'(*'", start);
      // Ruby: with named groups, plain ones do not capture. Nothing but references could tell.
      out_ += '(';
      ++at_;
      return;
    }
    static constexpr std::string_view kKinds[] = {"(?:", "(?=", "(?!", "(?<=", "(?<!", "(?>"};
    for (const auto kind : kKinds)
      if (in_.substr(at_).starts_with(kind)) {
        out_ += kind;
        at_ += kind.size();
        return;
      }
    // Options: i, and Ruby's m, which is PCRE2's s.
    std::size_t i = at_ + 2;
    std::string options;
    while (i < in_.size() && (in_[i] == 'i' || in_[i] == 'm' || in_[i] == '-')) {
      options += in_[i] == 'm' ? 's' : in_[i];
      ++i;
    }
    if (options.empty() || i >= in_.size() || in_[i] != ':')
      refuse(in_.substr(start, std::min<std::size_t>(4, in_.size() - start)), start);
    const auto minus = std::min(options.find('-'), options.size());
    if (const auto i_at = options.find('i'); i_at != std::string::npos) open_.back().caseless = i_at < minus;
    out_ += "(?" + options + ":";
    at_ = i + 1;
  }

  // Whether {n,m} stands at at_; its length.
  std::size_t interval() const {
    std::size_t i = at_ + 1, digits = 0;
    for (; i < in_.size() && ((in_[i] >= '0' && in_[i] <= '9') || in_[i] == ','); ++i) digits += in_[i] != ',';
    return i < in_.size() && in_[i] == '}' && digits > 0 ? i + 1 - at_ : 0;
  }

  void step() {
    const char c = in_[at_];
    if (std::string_view("\\[(){*+?|").find(c) == std::string_view::npos)
      check_folding(utf8::decode(in_, at_).code, at_);
    else
      letter_ = '\0';
    switch (c) {
      case '\\':
        atom_ = out_.size();
        escape(false);
        return;
      case '[':
        atom_ = out_.size();
        character_class();
        return;
      case '(':
        group();
        return;
      case ')':
        if (open_.empty()) refuse("')'", at_);
        atom_ = open_.back().start;
        open_.pop_back();
        break;
      case '{': {
        const std::size_t size = interval();
        if (size == 0) {
          atom_ = out_.size();
          out_ += "\\{";
          ++at_;
          return;
        }
        std::string text(in_.substr(at_, size));
        if (text[1] == ',') text.insert(1, "0");
        out_ += text;
        at_ += size;
        // Ruby: x{n,m}+ repeats x{n,m}, and x{n}? makes it optional; in PCRE2 they are possessive and lazy.
        const bool exact = text.find(',') == std::string::npos;
        if (peek() == '+' || (peek() == '?' && exact)) {
          out_.insert(atom_, "(?:");
          out_ += ")";
        }
        return;
      }
      case '#':
        break;
      default:
        break;
    }
    if (c != '*' && c != '+' && c != '?' && c != ')') atom_ = out_.size();
    out_ += c;
    ++at_;
    copy_tail();
  }
};

}  // namespace

std::string to_pcre2(std::string_view pattern, const std::string& place) { return Translator(pattern, place).run(); }

}  // namespace dstrain
