#pragma once
// Properties of characters, as PyPI tokenizers sees them. The tables are generated:
// tests/tokenizer/make_unicode_tables.py.

#include <cstdint>
#include <string>
#include <vector>

namespace dstrain::unicode {

// A set of code points: sorted ranges, and a bit for each below 2^16.
class CodeTable {
 public:
  struct Range {
    std::uint32_t first, last;
  };
  explicit CodeTable(std::vector<Range> ranges);
  bool has(std::uint32_t code) const {
    return code < 0x10000 ? (low_[code >> 6] >> (code & 63) & 1) != 0 : has_high(code);
  }
  const std::vector<Range>& ranges() const { return ranges_; }

 private:
  bool has_high(std::uint32_t code) const;
  std::vector<Range> ranges_;
  std::vector<std::uint64_t> low_;
};

struct LowerCase {
  std::uint32_t code, first, second;  // second: 0 when there is none
};
struct Property {
  const char* name;   // in \p{...}, as tokenizer.json spells it
  const char* pcre2;  // in PCRE2's \p{...}
  const char* added;  // ranges for a class of PCRE2: what it lacks
};

extern const CodeTable kLetter, kMark, kNumber, kPunctuation, kSymbol, kWord, kNumeric, kOldPunctuation, kOldOther,
    kOldNonspacing, kOldMark, kActive;
extern const std::vector<LowerCase> kLower;
extern const std::vector<Property> kProperties;

}  // namespace dstrain::unicode
