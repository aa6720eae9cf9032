#include "lib/tokenizer/split.h"

#include <algorithm>
#include <array>

#include "lib/tokenizer/unicode.h"
#include "lib/tokenizer/utf8.h"

namespace dstrain {

namespace {

// What the expressions ask of a character.
enum Class : unsigned char {
  kLetterBit = 1,
  kNumberBit = 2,
  kSpaceBit = 4,
  kMarkBit = 8,
  kSymbolBit = 16,  // P or S
  kNewlineBit = 32,
  kKanaBit = 64,  // DeepSeek-V3's second expression: most ideographs, and kana
};

unsigned char class_of(std::uint32_t c) {
  unsigned char k = 0;
  if (unicode::kLetter.has(c)) k |= kLetterBit;
  if (unicode::kNumber.has(c)) k |= kNumberBit;
  if (unicode::is_white_space(c)) k |= kSpaceBit;
  if (unicode::kMark.has(c)) k |= kMarkBit;
  if (unicode::kPunctuation.has(c) || unicode::kSymbol.has(c)) k |= kSymbolBit;
  if (c == '\r' || c == '\n') k |= kNewlineBit;
  if ((c >= 0x4e00 && c <= 0x9fa5) || (c >= 0x3040 && c <= 0x30ff)) k |= kKanaBit;
  return k;
}

// The class of every character below 2^17.
const unsigned char* classes() {
  static const std::vector<unsigned char> table = [] {
    std::vector<unsigned char> t(1u << 17);
    for (std::uint32_t c = 0; c < t.size(); ++c) t[c] = class_of(c);
    return t;
  }();
  return table.data();
}

class Scanner {
 public:
  Scanner(std::string_view text, std::size_t end) : text_(text), end_(end), table_(classes()) {}

  struct Character {
    unsigned char kind;
    std::uint32_t size;
  };
  // The character at `at`; kind 0 and size 0 at the end.
  Character at(std::size_t at) const {
    if (at >= end_) return {0, 0};
    const auto c = static_cast<unsigned char>(text_[at]);
    if (c < 0x80) return {table_[c], 1};
    const auto [code, size] = utf8::decode(text_, at);
    return {code < (1u << 17) ? table_[code] : class_of(code), size};
  }
  // The end of the run of characters from `i` that have one of the bits `any` (none of them when `!has`).
  std::size_t run(std::size_t i, unsigned any, bool has = true) const {
    for (Character c; (c = at(i)).size != 0 && ((c.kind & any) != 0) == has;) i += c.size;
    return i;
  }
  // \s+(?!\S)|\s+ from `i`, a space.
  std::size_t spaces(std::size_t i) const {
    const std::size_t after = run(i, kSpaceBit);
    if (after == end_) return after;
    const std::size_t last = after - utf8::decode_before(text_, after).size;
    return last > i ? last : after;
  }
  // \s*[\r\n]+ from `i`, a space; i when it does not match. Greedy: up to the run's last line break.
  std::size_t line_break(std::size_t i) const {
    std::size_t found = i;
    for (Character c; (c = at(i)).size != 0 && (c.kind & kSpaceBit) != 0;) {
      i += c.size;
      if ((c.kind & kNewlineBit) != 0) found = i;
    }
    return found;
  }
  char byte(std::size_t i) const { return i < end_ ? text_[i] : '\0'; }
  std::uint32_t code(std::size_t i) const { return i < end_ ? utf8::decode(text_, i).code : 0; }
  std::size_t end() const { return end_; }

 private:
  std::string_view text_;
  std::size_t end_;
  const unsigned char* table_;
};

// 's|'t|'re|'ve|'m|'ll|'d from `i`, which holds an apostrophe; i when it does not match. Without case, U+017F is an s.
std::size_t contraction(const Scanner& s, std::size_t i, bool any_case) {
  const auto lower = [&](std::size_t at) {
    const char c = s.byte(at);
    return any_case && c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c;
  };
  const char a = lower(i + 1), b = lower(i + 2);
  if (a == 's' || a == 't' || a == 'm' || a == 'd') return i + 2;
  if ((a == 'r' && b == 'e') || (a == 'v' && b == 'e') || (a == 'l' && b == 'l')) return i + 3;
  if (any_case && i + 1 < s.end() && s.code(i + 1) == 0x17f) return i + 3;
  return i;
}

std::size_t next_gpt2(const Scanner& s, std::size_t i) {
  if (s.byte(i) == '\'')
    if (const std::size_t e = contraction(s, i, false); e > i) return e;
  Scanner::Character c = s.at(i);
  const std::size_t j = s.byte(i) == ' ' ? i + 1 : i;
  if (j > i) c = s.at(j);
  if (c.size != 0) {
    if ((c.kind & kLetterBit) != 0) return s.run(j + c.size, kLetterBit);
    if ((c.kind & kNumberBit) != 0) return s.run(j + c.size, kNumberBit);
    if ((c.kind & kSpaceBit) == 0) return s.run(j + c.size, kSpaceBit | kLetterBit | kNumberBit, false);
  }
  return s.spaces(i);
}

std::size_t next_llama3(const Scanner& s, std::size_t i, int digits) {
  if (s.byte(i) == '\'')
    if (const std::size_t e = contraction(s, i, true); e > i) return e;
  const Scanner::Character c = s.at(i);
  if ((c.kind & kLetterBit) != 0) return s.run(i + c.size, kLetterBit);
  if ((c.kind & (kNewlineBit | kNumberBit)) == 0) {
    const Scanner::Character next = s.at(i + c.size);
    if ((next.kind & kLetterBit) != 0) return s.run(i + c.size + next.size, kLetterBit);
  }
  if ((c.kind & kNumberBit) != 0) {
    i += c.size;
    for (int n = 1; n < digits; ++n) {
      const Scanner::Character next = s.at(i);
      if ((next.kind & kNumberBit) == 0) break;
      i += next.size;
    }
    return i;
  }
  const std::size_t j = s.byte(i) == ' ' ? i + 1 : i;
  if (const Scanner::Character d = s.at(j); d.size != 0 && (d.kind & (kSpaceBit | kLetterBit | kNumberBit)) == 0)
    return s.run(s.run(j, kSpaceBit | kLetterBit | kNumberBit, false), kNewlineBit);
  if (const std::size_t e = s.line_break(i); e > i) return e;
  return s.spaces(i);
}

// DeepSeek-V3's third expression, in text without numbers. What it does not match is one piece, up to the next match.
std::size_t next_deepseek(const Scanner& s, std::size_t i, bool& matched) {
  matched = true;
  const char b = s.byte(i);
  const auto is_letter = [](char x) { return (x >= 'a' && x <= 'z') || (x >= 'A' && x <= 'Z'); };
  const bool ascii_symbol =
      (b >= 33 && b <= 47) || (b >= 58 && b <= 64) || (b >= 91 && b <= 96) || (b >= 123 && b <= 126);
  if (ascii_symbol && is_letter(s.byte(i + 1))) {
    std::size_t e = i + 2;
    while (is_letter(s.byte(e))) ++e;
    return e;
  }
  const Scanner::Character c = s.at(i);
  if ((c.kind & (kNewlineBit | kLetterBit | kSymbolBit)) == 0) {
    const Scanner::Character next = s.at(i + c.size);
    if ((next.kind & (kLetterBit | kMarkBit)) != 0) return s.run(i + c.size + next.size, kLetterBit | kMarkBit);
  }
  if ((c.kind & (kLetterBit | kMarkBit)) != 0) return s.run(i + c.size, kLetterBit | kMarkBit);
  const std::size_t j = b == ' ' ? i + 1 : i;
  if (const Scanner::Character d = s.at(j); (d.kind & kSymbolBit) != 0) return s.run(s.run(j, kSymbolBit), kNewlineBit);
  if ((c.kind & kSpaceBit) != 0) {
    if (const std::size_t e = s.line_break(i); e > i) return e;
    return s.spaces(i);
  }
  matched = false;
  return i + c.size;
}

void append_deepseek(std::string_view text, std::size_t begin, std::size_t end, std::vector<std::size_t>& ends) {
  const Scanner all(text, end);
  std::size_t i = begin;
  while (i < end) {
    const Scanner::Character c = all.at(i);
    if ((c.kind & kNumberBit) != 0) {
      i += c.size;
      for (int n = 1; n < 3; ++n) {
        const Scanner::Character next = all.at(i);
        if ((next.kind & kNumberBit) == 0) break;
        i += next.size;
      }
      ends.push_back(i);
      continue;
    }
    // The third expression sees each run of ideographs and kana, and each stretch between runs and numbers, alone.
    const std::size_t stop = (c.kind & kKanaBit) != 0 ? all.run(i, kKanaBit) : all.run(i, kNumberBit | kKanaBit, false);
    const Scanner part(text, stop);
    bool gap = false;  // the last end is that of unmatched text
    while (i < stop) {
      bool matched = true;
      i = next_deepseek(part, i, matched);
      if (gap && !matched)
        ends.back() = i;
      else
        ends.push_back(i);
      gap = !matched;
    }
  }
}

}  // namespace

const char* name_of(Split split) {
  constexpr const char* kNames[] = {"gpt2", "llama3", "qwen2", "deepseek_v3"};
  return kNames[static_cast<int>(split)];
}

const std::vector<std::string>& patterns_of(Split split) {
  static const std::array<std::vector<std::string>, 4> patterns = {{
      {R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)"},
      {R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)"},
      {R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)"},
      {R"(\p{N}{1,3})", "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
       R"([!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)"},
  }};
  return patterns[static_cast<std::size_t>(split)];
}

void append_pieces(Split split, std::string_view text, std::size_t begin, std::size_t end,
                   std::vector<std::size_t>& ends) {
  if (split == Split::deepseek_v3) return append_deepseek(text, begin, end, ends);
  const Scanner s(text, end);
  const int digits = split == Split::llama3 ? 3 : 1;
  for (std::size_t i = begin; i < end;) {
    i = split == Split::gpt2 ? next_gpt2(s, i) : next_llama3(s, i, digits);
    ends.push_back(i);
  }
}

}  // namespace dstrain
