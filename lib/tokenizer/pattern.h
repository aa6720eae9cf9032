#pragma once
// The patterns of tokenizer.json, {"String": ...} or {"Regex": ...}, and the Replace rule that a normalizer and a
// decoder share.

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "lib/tokenizer/json.h"
#include "lib/tokenizer/regex.h"

namespace dstrain {

class Pattern {
 public:
  explicit Pattern(const JsonNode& node);
  // Appends matches and what lies between them; see RegexMatcher::find. A String matches from left to right, without
  // overlap; the empty one matches at every character.
  void find(std::string_view text, RegexMatcher& matcher, std::vector<Part>& parts) const;
  bool is_regex() const { return regex_ != nullptr; }
  const std::string& text() const { return text_; }
  OrderedJson to_json() const;

 private:
  std::string text_;
  std::unique_ptr<const Regex> regex_;  // null for a String
};

// {"type": "Replace", "pattern": ..., "content": ...}
class ReplaceRule {
 public:
  explicit ReplaceRule(const JsonNode& node);
  const Pattern& pattern() const { return pattern_; }
  const std::string& content() const { return content_; }
  OrderedJson to_json() const;

 private:
  Pattern pattern_;
  std::string content_;
};

}  // namespace dstrain
