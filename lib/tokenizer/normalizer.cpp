#include "lib/tokenizer/normalizer.h"

#include <algorithm>
#include <optional>

#include "lib/tokenizer/pattern.h"
#include "lib/tokenizer/precompiled.h"
#include "lib/tokenizer/unicode.h"
#include "lib/tokenizer/utf8.h"

namespace dstrain {

namespace {

// Writes each character's replacement; keeps `zero` right.
template <class F>
void map_characters(NormalText& t, NormalizerScratch& scratch, F&& write) {
  std::string& out = scratch.next.text;
  out.clear();
  std::size_t zero = 0;
  for (std::size_t i = 0; i < t.text.size();) {
    const auto [code, size] = utf8::decode(t.text, i);
    write(code, out);
    if (i < t.zero) zero = out.size();
    i += size;
  }
  t.zero = zero;
  t.text.swap(out);
}

class NormalForm final : public Normalizer {
 public:
  explicit NormalForm(unicode::Form form) : form_(form) {}
  void apply(NormalText& t, NormalizerScratch& scratch) const override {
    scratch.next.text.clear();
    unicode::append_normal_form(scratch.next.text, t.text, form_);
    t.text.swap(scratch.next.text);
    // The first character's share; marks move only behind it.
    if (t.zero > 0) t.zero = t.text.empty() ? 0 : utf8::decode(t.text, 0).size;
  }
  OrderedJson to_json() const override {
    constexpr const char* kNames[] = {"NFC", "NFD", "NFKC", "NFKD"};
    return {{"type", kNames[static_cast<int>(form_)]}};
  }

 private:
  unicode::Form form_;
};

class Lowercase final : public Normalizer {
 public:
  void apply(NormalText& t, NormalizerScratch& scratch) const override {
    map_characters(t, scratch, [](std::uint32_t c, std::string& out) { unicode::append_lower(out, c); });
  }
  OrderedJson to_json() const override { return {{"type", "Lowercase"}}; }
};

class StripAccents final : public Normalizer {
 public:
  void apply(NormalText& t, NormalizerScratch& scratch) const override {
    map_characters(t, scratch, [](std::uint32_t c, std::string& out) {
      if (!unicode::kOldMark.has(c)) utf8::append(out, c);
    });
  }
  OrderedJson to_json() const override { return {{"type", "StripAccents"}}; }
};

class Nmt final : public Normalizer {
 public:
  void apply(NormalText& t, NormalizerScratch& scratch) const override {
    map_characters(t, scratch, [](std::uint32_t c, std::string& out) {
      if ((c >= 1 && c <= 8) || c == 0xb || (c >= 0xe && c <= 0x1f) || c == 0x7f || c == 0x8f || c == 0x9f) return;
      const bool space = c == 9 || c == 0xa || c == 0xc || c == 0xd || c == 0x1680 || (c >= 0x200b && c <= 0x200f) ||
                         c == 0x2028 || c == 0x2029 || c == 0x2581 || c == 0xfeff || c == 0xfffd;
      utf8::append(out, space ? ' ' : c);
    });
  }
  OrderedJson to_json() const override { return {{"type", "Nmt"}}; }
};

class Strip final : public Normalizer {
 public:
  Strip(bool left, bool right) : left_(left), right_(right) {}
  void apply(NormalText& t, NormalizerScratch&) const override {
    std::size_t begin = 0, end = t.text.size();
    if (left_)
      for (; begin < end; begin += utf8::decode(t.text, begin).size)
        if (!unicode::is_white_space(utf8::decode(t.text, begin).code)) break;
    if (right_)
      for (; end > begin; end -= utf8::decode_before(t.text, end).size)
        if (!unicode::is_white_space(utf8::decode_before(t.text, end).code)) break;
    t.text.resize(end);
    t.text.erase(0, begin);
    t.zero = std::min(t.zero - std::min(t.zero, begin), t.text.size());
  }
  OrderedJson to_json() const override { return {{"type", "Strip"}, {"strip_left", left_}, {"strip_right", right_}}; }

 private:
  bool left_, right_;
};

class Prepend final : public Normalizer {
 public:
  explicit Prepend(std::string text) : text_(std::move(text)) {}
  void apply(NormalText& t, NormalizerScratch&) const override {
    if (t.text.empty()) return;
    if (t.zero > 0) t.zero += text_.size();
    t.text.insert(0, text_);
  }
  OrderedJson to_json() const override { return {{"type", "Prepend"}, {"prepend", text_}}; }

 private:
  std::string text_;
};

class Replace final : public Normalizer {
 public:
  explicit Replace(const JsonNode& node) : replace_(node) {}
  void apply(NormalText& t, NormalizerScratch& scratch) const override {
    scratch.parts.clear();
    replace_.pattern().find(t.text, scratch.matcher, scratch.parts);
    std::string& out = scratch.next.text;
    out.clear();
    std::size_t zero = 0;
    for (const Part& p : scratch.parts) {
      if (p.match)
        out += replace_.content();
      else
        out.append(t.text, p.begin, p.end - p.begin);
      // Inserted text goes with the character before it.
      if (p.match ? p.end <= t.zero || (p.end == 0 && t.zero > 0) : p.begin < t.zero)
        zero = p.match ? out.size() : out.size() - (p.end - std::min(p.end, t.zero));
    }
    t.zero = zero;
    t.text.swap(out);
  }
  OrderedJson to_json() const override { return replace_.to_json(); }

 private:
  ReplaceRule replace_;
};

class BertNormalizer final : public Normalizer {
 public:
  explicit BertNormalizer(const JsonNode& node)
      : clean_(node["clean_text"].flag()),
        chinese_(node["handle_chinese_chars"].flag()),
        lowercase_(node["lowercase"].flag()) {
    if (!node["strip_accents"].is_null()) strip_ = node["strip_accents"].flag();
  }
  void apply(NormalText& t, NormalizerScratch& scratch) const override {
    if (clean_)
      map_characters(t, scratch, [](std::uint32_t c, std::string& out) {
        const bool kept_control = c == '\t' || c == '\n' || c == '\r';
        if (c == 0 || (!kept_control && unicode::kOldOther.has(c))) return;
        utf8::append(out, unicode::is_white_space(c) ? ' ' : c);
      });
    if (chinese_)
      map_characters(t, scratch, [](std::uint32_t c, std::string& out) {
        const bool is_chinese = (c >= 0x4e00 && c <= 0x9fff) || (c >= 0x3400 && c <= 0x4dbf) ||
                                (c >= 0x20000 && c <= 0x2a6df) || (c >= 0x2a700 && c <= 0x2b73f) ||
                                (c >= 0x2b740 && c <= 0x2b81f) || (c >= 0x2b920 && c <= 0x2ceaf) ||
                                (c >= 0xf900 && c <= 0xfaff) || (c >= 0x2f800 && c <= 0x2fa1f);
        if (is_chinese) out += ' ';
        utf8::append(out, c);
        if (is_chinese) out += ' ';
      });
    if (strip_.value_or(lowercase_)) {
      NormalForm(unicode::Form::nfd).apply(t, scratch);
      map_characters(t, scratch, [](std::uint32_t c, std::string& out) {
        if (!unicode::kOldNonspacing.has(c)) utf8::append(out, c);
      });
    }
    if (lowercase_) Lowercase().apply(t, scratch);
  }
  OrderedJson to_json() const override {
    OrderedJson out = {{"type", "BertNormalizer"}, {"clean_text", clean_}, {"handle_chinese_chars", chinese_}};
    out["strip_accents"] = strip_ ? OrderedJson(*strip_) : OrderedJson(nullptr);
    out["lowercase"] = lowercase_;
    return out;
  }

 private:
  bool clean_, chinese_, lowercase_;
  std::optional<bool> strip_;
};

class Precompiled final : public Normalizer {
 public:
  explicit Precompiled(const JsonNode& node) : map_(node["precompiled_charsmap"]) {}
  void apply(NormalText& t, NormalizerScratch& scratch) const override {
    scratch.next.text.clear();
    t.zero = map_.append(scratch.next.text, t.text, t.zero);
    t.text.swap(scratch.next.text);
  }
  OrderedJson to_json() const override { return {{"type", "Precompiled"}, {"precompiled_charsmap", map_.base64()}}; }

 private:
  CharactersMap map_;
};

class Sequence final : public Normalizer {
 public:
  explicit Sequence(const JsonNode& node) {
    node["normalizers"].array();
    for (std::size_t i = 0; i < node["normalizers"].size(); ++i) {
      auto part = read_normalizer(node["normalizers"][i]);
      if (!part) node["normalizers"][i].refuse("expected a normalizer");
      parts_.push_back(std::move(part));
    }
  }
  void apply(NormalText& t, NormalizerScratch& scratch) const override {
    for (const auto& p : parts_) p->apply(t, scratch);
  }
  OrderedJson to_json() const override {
    OrderedJson list = OrderedJson::array();
    for (const auto& p : parts_) list.push_back(p->to_json());
    return {{"type", "Sequence"}, {"normalizers", list}};
  }

 private:
  std::vector<std::unique_ptr<const Normalizer>> parts_;
};

}  // namespace

std::unique_ptr<const Normalizer> read_normalizer(const JsonNode& node) {
  if (node.is_null()) return nullptr;
  const std::string type = node["type"].text();
  const auto plain = [&] { node.only({"type"}); };
  using unicode::Form;
  if (type == "NFC") return plain(), std::make_unique<NormalForm>(Form::nfc);
  if (type == "NFD") return plain(), std::make_unique<NormalForm>(Form::nfd);
  if (type == "NFKC") return plain(), std::make_unique<NormalForm>(Form::nfkc);
  if (type == "NFKD") return plain(), std::make_unique<NormalForm>(Form::nfkd);
  if (type == "Lowercase") return plain(), std::make_unique<Lowercase>();
  if (type == "StripAccents") return plain(), std::make_unique<StripAccents>();
  if (type == "Nmt") return plain(), std::make_unique<Nmt>();
  if (type == "Strip") {
    node.only({"type", "strip_left", "strip_right"});
    return std::make_unique<Strip>(node["strip_left"].flag(), node["strip_right"].flag());
  }
  if (type == "Prepend") {
    node.only({"type", "prepend"});
    return std::make_unique<Prepend>(node["prepend"].text());
  }
  if (type == "Replace") return std::make_unique<Replace>(node);
  if (type == "BertNormalizer") {
    node.only({"type", "clean_text", "handle_chinese_chars", "strip_accents", "lowercase"});
    return std::make_unique<BertNormalizer>(node);
  }
  if (type == "Precompiled") {
    node.only({"type", "precompiled_charsmap"});
    return std::make_unique<Precompiled>(node);
  }
  if (type == "Sequence") {
    node.only({"type", "normalizers"});
    return std::make_unique<Sequence>(node);
  }
  node["type"].refuse("is not supported");
}

}  // namespace dstrain
