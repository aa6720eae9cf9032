#pragma once
// The regular expressions of tokenizer.json: Oniguruma's syntax (Ruby's), matched by PCRE2.

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace dstrain {

// A part of a text, in bytes, and whether the pattern matches it.
struct Part {
  std::size_t begin, end;
  bool match;
};

// The pattern in PCRE2's words. Where the two languages differ (what \s, \w, \h, \b, ^, $, (?m), {n}+ mean, characters
// newer than PCRE2), the meaning is Oniguruma's; what has no equal is refused: Error{data} with `place` and the piece.
std::string to_pcre2(std::string_view pattern, const std::string& place);

// A compiled pattern; immutable.
class Regex {
 public:
  // Throws Error{data}: "<place>: ..." when the pattern is not one, or is not supported.
  Regex(std::string pattern, std::string place);
  ~Regex();
  Regex(const Regex&) = delete;
  Regex& operator=(const Regex&) = delete;
  const std::string& pattern() const { return pattern_; }
  const std::string& place() const { return place_; }

 private:
  friend class RegexMatcher;
  std::string pattern_, place_;
  struct Code;
  std::unique_ptr<Code> code_;
};

// The memory that one thread needs to match.
class RegexMatcher {
 public:
  RegexMatcher();
  ~RegexMatcher();
  RegexMatcher(RegexMatcher&&) noexcept;

  // Appends the matches of `text`, valid UTF-8, and what lies between them, in order, as PyPI tokenizers' find_matches
  // does: matches may be empty, one after another. Throws Error{data} with the regex's place when the pattern explodes:
  // 10^7 backtracks from one position, or much longer than in proportion to the text.
  void find(const Regex& regex, std::string_view text, std::vector<Part>& parts);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace dstrain
