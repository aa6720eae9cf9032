#include "lib/tokenizer/decoder.h"

#include <algorithm>

#include "lib/tokenizer/byte_alphabet.h"
#include "lib/tokenizer/pattern.h"
#include "lib/tokenizer/utf8.h"

namespace dstrain {

namespace {

using Texts = std::vector<std::string>;

void replace_all(std::string& text, std::string_view from, std::string_view to) {
  std::string out;
  std::size_t at = 0;
  for (std::size_t found; (found = text.find(from, at)) != std::string::npos; at = found + from.size()) {
    out.append(text, at, found - at);
    out += to;
  }
  if (at == 0) return;
  out.append(text, at);
  text = std::move(out);
}

class ByteLevelDecoder final : public Decoder {
 public:
  explicit ByteLevelDecoder(bool last) : last_(last) {}
  void apply(Texts& texts, RegexMatcher&) const override {
    std::string out, bytes;
    for (const std::string& t : texts) out += unspell_bytes(t, bytes) ? bytes : t;
    if (!last_) {
      std::string storage;
      out = std::string(utf8::replace_invalid(out, storage));
    }
    texts.assign(1, std::move(out));
  }

 private:
  bool last_;
};

class MetaspaceDecoder final : public Decoder {
 public:
  MetaspaceDecoder(std::string replacement, bool prepends)
      : replacement_(std::move(replacement)), prepends_(prepends) {}
  void apply(Texts& texts, RegexMatcher&) const override {
    for (std::size_t i = 0; i < texts.size(); ++i) replace_all(texts[i], replacement_, i == 0 && prepends_ ? "" : " ");
  }

 private:
  std::string replacement_;
  bool prepends_;
};

class WordPieceDecoder final : public Decoder {
 public:
  WordPieceDecoder(std::string prefix, bool cleanup) : prefix_(std::move(prefix)), cleanup_(cleanup) {}
  void apply(Texts& texts, RegexMatcher&) const override {
    constexpr std::pair<const char*, const char*> kRules[] = {
        {" .", "."},   {" ?", "?"},           {" !", "!"},   {" ,", ","},     {" ' ", "'"},   {" n't", "n't"},
        {" 'm", "'m"}, {" do not", " don't"}, {" 's", "'s"}, {" 've", "'ve"}, {" 're", "'re"}};
    for (std::size_t i = 0; i < texts.size(); ++i) {
      if (i > 0) {
        if (texts[i].starts_with(prefix_))
          texts[i].erase(0, prefix_.size());
        else
          texts[i].insert(0, " ");
      }
      if (cleanup_)
        for (const auto& [from, to] : kRules) replace_all(texts[i], from, to);
    }
  }

 private:
  std::string prefix_;
  bool cleanup_;
};

class BpeDecoder final : public Decoder {
 public:
  explicit BpeDecoder(std::string suffix) : suffix_(std::move(suffix)) {}
  void apply(Texts& texts, RegexMatcher&) const override {
    for (std::size_t i = 0; i < texts.size(); ++i) replace_all(texts[i], suffix_, i + 1 == texts.size() ? "" : " ");
  }

 private:
  std::string suffix_;
};

class ByteFallbackDecoder final : public Decoder {
 public:
  void apply(Texts& texts, RegexMatcher&) const override {
    Texts out;
    std::string bytes;
    const auto flush = [&] {
      if (bytes.empty()) return;
      if (utf8::valid_prefix(bytes) == bytes.size())
        out.push_back(bytes);
      else
        out.insert(out.end(), bytes.size(), "\xef\xbf\xbd");
      bytes.clear();
    };
    for (std::string& t : texts) {
      const int byte = byte_in(t);
      if (byte >= 0) {
        bytes += static_cast<char>(byte);
        continue;
      }
      flush();
      out.push_back(std::move(t));
    }
    flush();
    texts = std::move(out);
  }

 private:
  // <0x00> to <0xFF>, digits of either case; Rust's from_str_radix takes a sign as well.
  static int byte_in(const std::string& t) {
    if (t.size() != 6 || !t.starts_with("<0x") || t[5] != '>') return -1;
    const auto digit = [](char c) {
      return c >= '0' && c <= '9'   ? c - '0'
             : c >= 'a' && c <= 'f' ? c - 'a' + 10
             : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                    : -1;
    };
    const int high = t[3] == '+' ? 0 : digit(t[3]), low = digit(t[4]);
    return high < 0 || low < 0 ? -1 : high * 16 + low;
  }
};

class FuseDecoder final : public Decoder {
 public:
  void apply(Texts& texts, RegexMatcher&) const override {
    std::string out;
    for (const std::string& t : texts) out += t;
    texts.assign(1, std::move(out));
  }
};

class StripDecoder final : public Decoder {
 public:
  StripDecoder(std::string content, std::int64_t start, std::int64_t stop)
      : content_(std::move(content)), start_(start), stop_(stop) {}
  void apply(Texts& texts, RegexMatcher&) const override {
    for (std::string& t : texts) {
      std::size_t begin = 0, end = t.size();
      for (std::int64_t i = 0; i < start_ && std::string_view(t).substr(begin).starts_with(content_); ++i)
        begin += content_.size();
      for (std::int64_t i = 0; i < stop_ && end > begin && std::string_view(t).substr(0, end).ends_with(content_); ++i)
        end -= content_.size();
      t = t.substr(begin, end - begin);
    }
  }

 private:
  std::string content_;
  std::int64_t start_, stop_;
};

class ReplaceDecoder final : public Decoder {
 public:
  explicit ReplaceDecoder(const JsonNode& node) : rule_(node) {}
  void apply(Texts& texts, RegexMatcher& matcher) const override {
    std::vector<Part> parts;
    for (std::string& t : texts) {
      parts.clear();
      rule_.pattern().find(t, matcher, parts);
      std::string out;
      for (const Part& p : parts)
        if (p.match)
          out += rule_.content();
        else
          out.append(t, p.begin, p.end - p.begin);
      t = std::move(out);
    }
  }
  OrderedJson to_json() const { return rule_.to_json(); }

 private:
  ReplaceRule rule_;
};

using DecoderSteps = std::vector<std::unique_ptr<const Decoder>>;

OrderedJson read_steps(const JsonNode& node, bool last, DecoderSteps& steps) {
  const std::string type = node["type"].text();
  if (type == "Sequence") {
    node.only({"type", "decoders"});
    node["decoders"].array();
    OrderedJson list = OrderedJson::array();
    for (std::size_t i = 0; i < node["decoders"].size(); ++i)
      list.push_back(read_steps(node["decoders"][i], last && i + 1 == node["decoders"].size(), steps));
    return {{"type", "Sequence"}, {"decoders", list}};
  }
  if (type == "ByteLevel") {
    node.only({"type", "add_prefix_space", "trim_offsets", "use_regex"});
    steps.push_back(std::make_unique<ByteLevelDecoder>(last));
    return {{"type", "ByteLevel"},
            {"add_prefix_space", node["add_prefix_space"].flag()},
            {"trim_offsets", node["trim_offsets"].flag()},
            {"use_regex", node["use_regex"].flag(true)}};
  }
  if (type == "Metaspace") {
    node.only({"type", "replacement", "add_prefix_space", "prepend_scheme", "split", "str_rep"});
    std::string replacement;
    utf8::append(replacement, node["replacement"].character());
    const std::string scheme = node["prepend_scheme"].is_null() ? "always" : node["prepend_scheme"].text();
    if (scheme != "always" && scheme != "first" && scheme != "never")
      node["prepend_scheme"].refuse("is not supported: expected always, first or never");
    if (!node["add_prefix_space"].flag(true) && scheme != "never")
      node["add_prefix_space"].refuse("contradicts prepend_scheme");
    steps.push_back(std::make_unique<MetaspaceDecoder>(replacement, scheme != "never"));
    return {{"type", "Metaspace"},
            {"replacement", replacement},
            {"prepend_scheme", scheme},
            {"split", node["split"].flag(true)}};
  }
  if (type == "WordPiece") {
    node.only({"type", "prefix", "cleanup"});
    steps.push_back(std::make_unique<WordPieceDecoder>(node["prefix"].text(), node["cleanup"].flag()));
    return {{"type", "WordPiece"}, {"prefix", node["prefix"].text()}, {"cleanup", node["cleanup"].flag()}};
  }
  if (type == "BPEDecoder") {
    node.only({"type", "suffix"});
    if (node["suffix"].text().empty()) node["suffix"].refuse("is not supported: an empty suffix");
    steps.push_back(std::make_unique<BpeDecoder>(node["suffix"].text()));
    return {{"type", "BPEDecoder"}, {"suffix", node["suffix"].text()}};
  }
  if (type == "ByteFallback" || type == "Fuse") {
    node.only({"type"});
    if (type == "Fuse")
      steps.push_back(std::make_unique<FuseDecoder>());
    else
      steps.push_back(std::make_unique<ByteFallbackDecoder>());
    return {{"type", type}};
  }
  if (type == "Strip") {
    node.only({"type", "content", "start", "stop"});
    std::string content;
    utf8::append(content, node["content"].character());
    const std::int64_t start = node["start"].integer(0, INT64_MAX), stop = node["stop"].integer(0, INT64_MAX);
    steps.push_back(std::make_unique<StripDecoder>(content, start, stop));
    return {{"type", "Strip"}, {"content", content}, {"start", start}, {"stop", stop}};
  }
  if (type == "Replace") {
    auto step = std::make_unique<ReplaceDecoder>(node);
    OrderedJson json = step->to_json();
    steps.push_back(std::move(step));
    return json;
  }
  node["type"].refuse("is not supported");
}

}  // namespace

Decoders read_decoder(const JsonNode& node) {
  Decoders out;
  if (node.is_null()) return out;
  out.json = read_steps(node, true, out.steps);
  out.only_bytes = out.steps.size() == 1 && dynamic_cast<const ByteLevelDecoder*>(out.steps[0].get()) != nullptr;
  return out;
}

std::string Decoders::decode(std::vector<std::string> texts) const {
  RegexMatcher matcher;
  for (const auto& s : steps) s->apply(texts, matcher);
  std::string out;
  for (std::size_t i = 0; i < texts.size(); ++i) {
    if (i > 0 && json.is_null()) out += ' ';
    out += texts[i];
  }
  return out;
}

}  // namespace dstrain
