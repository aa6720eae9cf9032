#include "lib/tokenizer/pre_tokenizer.h"

#include <algorithm>
#include <optional>

#include "lib/tokenizer/byte_alphabet.h"
#include "lib/tokenizer/pattern.h"
#include "lib/tokenizer/split.h"
#include "lib/tokenizer/unicode.h"
#include "lib/tokenizer/utf8.h"

namespace dstrain {

void Pieces::start(std::string_view text, std::size_t zero) {
  text_ = text;
  zero_ = zero;
  spans_.clear();
  if (!text.empty()) spans_.push_back({0, text.size()});
}

namespace {

using Span = Pieces::Span;

enum class Behavior : unsigned char { removed, isolated, merged_with_previous, merged_with_next, contiguous };
constexpr const char* kBehaviors[] = {"Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"};

Behavior read_behavior(const JsonNode& node) {
  const std::string name = node.text();
  for (int i = 0; i < 5; ++i)
    if (name == kBehaviors[i]) return static_cast<Behavior>(i);
  node.refuse("is not supported: expected Removed, Isolated, MergedWithPrevious, MergedWithNext or Contiguous");
}

// Appends the spans that a behavior makes of the parts of a piece that starts at `origin`.
void append_spans(const std::vector<Part>& parts, std::size_t origin, Behavior behavior, bool invert,
                  std::vector<Span>& out) {
  const std::size_t first = out.size();
  bool previous = false;
  const auto add = [&](const Part& p) { out.push_back({origin + p.begin, origin + p.end}); };
  switch (behavior) {
    case Behavior::isolated:
      for (const Part& p : parts) add(p);
      return;
    case Behavior::removed:
      for (const Part& p : parts)
        if (p.match == invert) add(p);
      return;
    case Behavior::contiguous:
      for (const Part& p : parts) {
        const bool match = p.match != invert;
        if (match == previous && out.size() > first)
          out.back().end = origin + p.end;
        else
          add(p);
        previous = match;
      }
      return;
    case Behavior::merged_with_previous:
      for (const Part& p : parts) {
        const bool match = p.match != invert;
        if (match && !previous && out.size() > first)
          out.back().end = origin + p.end;
        else
          add(p);
        previous = match;
      }
      return;
    case Behavior::merged_with_next:
      for (auto p = parts.rbegin(); p != parts.rend(); ++p) {
        const bool match = p->match != invert;
        if (match && !previous && out.size() > first)
          out.back().begin = origin + p->begin;
        else
          add(*p);
        previous = match;
      }
      std::reverse(out.begin() + static_cast<std::ptrdiff_t>(first), out.end());
      return;
  }
}

// Cuts at the characters that `is` holds for.
template <class F>
void cut_at(Pieces& pieces, Behavior behavior, F&& is) {
  pieces.cut([&](const Span& s, std::vector<Span>& next) {
    std::vector<Part>& parts = pieces.parts;
    parts.clear();
    std::size_t last = s.begin;
    for (std::size_t i = s.begin; i < s.end;) {
      const auto [code, size] = utf8::decode(pieces.text(), i);
      if (is(code)) {
        if (last < i) parts.push_back({last, i, false});
        parts.push_back({i, i + size, true});
        last = i + size;
      }
      i += size;
    }
    if (last < s.end) parts.push_back({last, s.end, false});
    append_spans(parts, 0, behavior, false, next);
  });
}

// char::is_ascii_punctuation, or category P.
bool is_punctuation(std::uint32_t c) { return unicode::kOldPunctuation.has(c); }

class RegexSplit final : public PreTokenizer {
 public:
  explicit RegexSplit(const JsonNode& node)
      : pattern_(node["pattern"]), behavior_(read_behavior(node["behavior"])), invert_(node["invert"].flag()) {
    node.only({"type", "pattern", "behavior", "invert"});
  }
  void apply(Pieces& pieces) const override {
    pieces.cut([&](const Span& s, std::vector<Span>& next) {
      pieces.parts.clear();
      pattern_.find(pieces.piece(s), pieces.matcher, pieces.parts);
      append_spans(pieces.parts, s.begin, behavior_, invert_, next);
    });
  }
  OrderedJson to_json() const override {
    return {{"type", "Split"},
            {"pattern", pattern_.to_json()},
            {"behavior", kBehaviors[static_cast<int>(behavior_)]},
            {"invert", invert_}};
  }
  // The pattern, when this is a plain split by a regular expression.
  std::optional<std::string> isolating() const {
    return pattern_.is_regex() && behavior_ == Behavior::isolated && !invert_ ? std::optional(pattern_.text())
                                                                              : std::nullopt;
  }

 private:
  Pattern pattern_;
  Behavior behavior_;
  bool invert_;
};

// Steps that are a known split, at a scanner's speed.
class KnownSplit final : public PreTokenizer {
 public:
  explicit KnownSplit(Split split) : split_(split) {}
  void apply(Pieces& pieces) const override {
    pieces.cut([&](const Span& s, std::vector<Span>& next) {
      pieces.ends.clear();
      append_pieces(split_, pieces.text(), s.begin, s.end, pieces.ends);
      std::size_t begin = s.begin;
      for (const std::size_t end : pieces.ends) {
        next.push_back({begin, end});
        begin = end;
      }
    });
  }
  OrderedJson to_json() const override { return nullptr; }  // stands for steps that are already written

 private:
  Split split_;
};

class PrefixSpace final : public PreTokenizer {
 public:
  void apply(Pieces& pieces) const override {
    pieces.respell([](std::string_view piece, std::size_t zero, std::string& out) {
      const std::size_t added = piece.starts_with(' ') ? 0 : 1;
      if (added != 0) out += ' ';
      out += piece;
      return zero > 0 ? std::min(zero, piece.size()) + added : 0;
    });
  }
  OrderedJson to_json() const override { return nullptr; }
};

class SpellBytes final : public PreTokenizer {
 public:
  void apply(Pieces& pieces) const override {
    pieces.respell([](std::string_view piece, std::size_t zero, std::string& out) {
      const std::size_t begin = out.size();
      spell_bytes(piece.substr(0, std::min(zero, piece.size())), out);
      const std::size_t kept = out.size() - begin;
      spell_bytes(piece.substr(std::min(zero, piece.size())), out);
      return kept;
    });
  }
  OrderedJson to_json() const override { return nullptr; }
};

class Metaspace final : public PreTokenizer {
 public:
  explicit Metaspace(const JsonNode& node) {
    node.only({"type", "replacement", "add_prefix_space", "prepend_scheme", "split", "str_rep"});
    utf8::append(replacement_, node["replacement"].character());
    scheme_ = node["prepend_scheme"].is_null() ? "always" : node["prepend_scheme"].text();
    if (scheme_ != "always" && scheme_ != "first" && scheme_ != "never")
      node["prepend_scheme"].refuse("is not supported: expected always, first or never");
    if (!node["add_prefix_space"].flag(true)) {
      // Older files say add_prefix_space alone; a scheme beside it must agree.
      if (scheme_ != "never") node["add_prefix_space"].refuse("contradicts prepend_scheme");
    }
    split_ = node["split"].flag(true);
  }
  void apply(Pieces& pieces) const override {
    pieces.respell([&](std::string_view piece, std::size_t zero, std::string& out) {
      std::size_t kept = 0;
      const std::size_t begin = out.size();
      const bool starts = piece.starts_with(' ') || piece.starts_with(replacement_);
      if (!starts && (scheme_ == "always" || (scheme_ == "first" && zero > 0))) out += replacement_;
      for (std::size_t i = 0; i < piece.size(); ++i) {
        if (piece[i] == ' ')
          out += replacement_;
        else
          out += piece[i];
        if (i < zero) kept = out.size() - begin;
      }
      return kept;
    });
    if (!split_) return;
    pieces.cut([&](const Span& s, std::vector<Span>& next) {
      // MergedWithNext: a run of replacements is cut into single ones, the last with what follows.
      const std::string_view piece = pieces.piece(s);
      std::size_t begin = 0;
      for (std::size_t i = piece.find(replacement_); i != std::string_view::npos;
           i = piece.find(replacement_, i + replacement_.size())) {
        if (i > begin) next.push_back({s.begin + begin, s.begin + i});
        begin = i;
      }
      next.push_back({s.begin + begin, s.end});
    });
  }
  OrderedJson to_json() const override {
    return {{"type", "Metaspace"}, {"replacement", replacement_}, {"prepend_scheme", scheme_}, {"split", split_}};
  }

 private:
  std::string replacement_, scheme_;
  bool split_ = true;
};

// Digits, Punctuation, WhitespaceSplit, BertPreTokenizer, Whitespace: cuts by what characters are.
class ByCharacter final : public PreTokenizer {
 public:
  using Apply = void (*)(Pieces&, Behavior);
  ByCharacter(Apply cut, Behavior behavior, OrderedJson json)
      : apply_(cut), behavior_(behavior), json_(std::move(json)) {}
  void apply(Pieces& pieces) const override { apply_(pieces, behavior_); }
  OrderedJson to_json() const override { return json_; }

 private:
  Apply apply_;
  Behavior behavior_;
  OrderedJson json_;
};

void cut_numbers(Pieces& p, Behavior b) {
  cut_at(p, b, [](std::uint32_t c) { return unicode::kNumeric.has(c); });
}
void cut_punctuation(Pieces& p, Behavior b) { cut_at(p, b, is_punctuation); }
void cut_spaces(Pieces& p, Behavior b) { cut_at(p, b, unicode::is_white_space); }
void cut_bert(Pieces& p, Behavior) {
  cut_spaces(p, Behavior::removed);
  cut_punctuation(p, Behavior::isolated);
}
// \w+|[^\w\s]+, without what lies between.
void cut_words(Pieces& pieces, Behavior) {
  pieces.cut([&](const Span& s, std::vector<Span>& next) {
    const auto kind_of = [](std::uint32_t c) { return unicode::is_word(c) ? 1 : unicode::is_white_space(c) ? 0 : 2; };
    int last = 0;
    for (std::size_t i = s.begin; i < s.end;) {
      const auto [code, size] = utf8::decode(pieces.text(), i);
      const int kind = kind_of(code);
      if (kind != 0) {
        if (kind == last)
          next.back().end = i + size;
        else
          next.push_back({i, i + size});
      }
      last = kind;
      i += size;
    }
  });
}

using PreTokenizerSteps = std::vector<std::unique_ptr<const PreTokenizer>>;

// Appends the steps of a node and returns it as PyPI tokenizers writes it.
OrderedJson read_steps(const JsonNode& node, PreTokenizerSteps& steps) {
  const std::string type = node["type"].text();
  const auto add = [&](std::unique_ptr<const PreTokenizer> step) {
    steps.push_back(std::move(step));
    return steps.back()->to_json();
  };
  if (type == "Sequence") {
    node.only({"type", "pretokenizers"});
    node["pretokenizers"].array();
    OrderedJson list = OrderedJson::array();
    for (std::size_t i = 0; i < node["pretokenizers"].size(); ++i)
      list.push_back(read_steps(node["pretokenizers"][i], steps));
    return {{"type", "Sequence"}, {"pretokenizers", list}};
  }
  if (type == "ByteLevel") {
    node.only({"type", "add_prefix_space", "trim_offsets", "use_regex"});
    const bool prefix = node["add_prefix_space"].flag(), regex = node["use_regex"].flag(true);
    const bool trim = node["trim_offsets"].flag();  // concerns offsets, which nobody asks for
    if (prefix) steps.push_back(std::make_unique<PrefixSpace>());
    if (regex) steps.push_back(std::make_unique<KnownSplit>(Split::gpt2));
    steps.push_back(std::make_unique<SpellBytes>());
    return {{"type", "ByteLevel"}, {"add_prefix_space", prefix}, {"trim_offsets", trim}, {"use_regex", regex}};
  }
  if (type == "Split") return add(std::make_unique<RegexSplit>(node));
  if (type == "Metaspace") return add(std::make_unique<Metaspace>(node));
  if (type == "Digits") {
    node.only({"type", "individual_digits"});
    const bool single = node["individual_digits"].flag();
    return add(std::make_unique<ByCharacter>(cut_numbers, single ? Behavior::isolated : Behavior::contiguous,
                                             OrderedJson{{"type", "Digits"}, {"individual_digits", single}}));
  }
  if (type == "Punctuation") {
    node.only({"type", "behavior"});
    const Behavior b = node["behavior"].is_null() ? Behavior::isolated : read_behavior(node["behavior"]);
    return add(std::make_unique<ByCharacter>(
        cut_punctuation, b, OrderedJson{{"type", "Punctuation"}, {"behavior", kBehaviors[static_cast<int>(b)]}}));
  }
  const auto plain = [&](ByCharacter::Apply apply, Behavior b) {
    node.only({"type"});
    return add(std::make_unique<ByCharacter>(apply, b, OrderedJson{{"type", type}}));
  };
  if (type == "Whitespace") return plain(cut_words, Behavior::removed);
  if (type == "WhitespaceSplit") return plain(cut_spaces, Behavior::removed);
  if (type == "BertPreTokenizer") return plain(cut_bert, Behavior::removed);
  node["type"].refuse("is not supported");
}

// Puts scanners in the place of steps that they know.
void use_scanners(PreTokenizerSteps& steps) {
  std::vector<std::optional<std::string>> patterns;
  for (const auto& s : steps) {
    const auto* split = dynamic_cast<const RegexSplit*>(s.get());
    patterns.push_back(split ? split->isolating() : std::nullopt);
  }
  for (const Split split : kSplits) {
    const auto& known = patterns_of(split);
    for (std::size_t i = 0; i + known.size() <= steps.size(); ++i) {
      const auto at = patterns.begin() + static_cast<std::ptrdiff_t>(i);
      if (!std::equal(known.begin(), known.end(), at, [](const auto& a, const auto& b) { return b && a == *b; }))
        continue;
      const auto size = static_cast<std::ptrdiff_t>(known.size());
      const auto step = steps.begin() + static_cast<std::ptrdiff_t>(i);
      *step = std::make_unique<KnownSplit>(split);
      *at = std::nullopt;
      steps.erase(step + 1, step + size);
      patterns.erase(at + 1, at + size);
    }
  }
}

}  // namespace

PreTokenizers read_pre_tokenizer(const JsonNode& node, bool spelling_model) {
  PreTokenizers out;
  if (node.is_null()) return out;
  out.json = read_steps(node, out.steps);
  use_scanners(out.steps);
  if (spelling_model && !out.steps.empty() && dynamic_cast<const SpellBytes*>(out.steps.back().get()) != nullptr) {
    out.bytes = true;
    out.steps.pop_back();
  }
  return out;
}

}  // namespace dstrain
