#pragma once
// What the characters of a text are, and its normal forms, as PyPI tokenizers has them.

#include <cstdint>
#include <string>
#include <string_view>

#include "lib/tokenizer/unicode_tables.h"

namespace dstrain::unicode {

// Unicode's White_Space: Rust's char::is_whitespace, and \s.
inline bool is_white_space(std::uint32_t c) {
  if (c < 0x80) return c == ' ' || (c >= 9 && c <= 13);
  return c == 0x85 || c == 0xa0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 ||
         c == 0x202f || c == 0x205f || c == 0x3000;
}
// Rust's \w: Oniguruma's has superscripts and fractions of Latin-1 as well, and lacks the joiners.
inline bool is_word(std::uint32_t c) {
  if (c == 0xb2 || c == 0xb3 || c == 0xb9 || (c >= 0xbc && c <= 0xbe)) return false;
  return kWord.has(c) || c == 0x200c || c == 0x200d;
}

// Appends the lower case of a character: one or two characters.
void append_lower(std::string& out, std::uint32_t code);

enum class Form : unsigned char { nfc, nfd, nfkc, nfkd };
// Appends the normal form of `text`, which is valid UTF-8. Linear in the text but for a logarithm in the length of a
// run of combining marks.
void append_normal_form(std::string& out, std::string_view text, Form form);

}  // namespace dstrain::unicode
