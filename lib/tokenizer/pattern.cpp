#include "lib/tokenizer/pattern.h"

#include <cstring>

#include "lib/tokenizer/utf8.h"

namespace dstrain {

Pattern::Pattern(const JsonNode& node) {
  node.only({"String", "Regex"});
  if (node.size() != 1) node.refuse("expected a String or a Regex");
  if (!node["Regex"].is_null()) {
    text_ = node["Regex"].text();
    regex_ = std::make_unique<Regex>(text_, node["Regex"].place());
    return;
  }
  text_ = node["String"].text();
}

void Pattern::find(std::string_view text, RegexMatcher& matcher, std::vector<Part>& parts) const {
  if (regex_) return matcher.find(*regex_, text, parts);
  if (text.empty()) {
    parts.push_back({0, 0, false});
    return;
  }
  if (text_.empty()) {
    for (std::size_t i = 0; i < text.size();) {
      const std::size_t size = utf8::decode(text, i).size;
      parts.push_back({i, i, true});
      parts.push_back({i, i + size, false});
      i += size;
    }
    parts.push_back({text.size(), text.size(), true});
    return;
  }
  std::size_t at = 0;
  while (at < text.size()) {
    // memmem is linear whatever the two hold.
    const void* there = ::memmem(text.data() + at, text.size() - at, text_.data(), text_.size());
    if (there == nullptr) break;
    const auto found = static_cast<std::size_t>(static_cast<const char*>(there) - text.data());
    if (found > at) parts.push_back({at, found, false});
    parts.push_back({found, found + text_.size(), true});
    at = found + text_.size();
  }
  if (at < text.size()) parts.push_back({at, text.size(), false});
}

OrderedJson Pattern::to_json() const { return {{regex_ ? "Regex" : "String", text_}}; }

ReplaceRule::ReplaceRule(const JsonNode& node) : pattern_(node["pattern"]), content_(node["content"].text()) {
  node.only({"type", "pattern", "content"});
}

OrderedJson ReplaceRule::to_json() const {
  return {{"type", "Replace"}, {"pattern", pattern_.to_json()}, {"content", content_}};
}

}  // namespace dstrain
