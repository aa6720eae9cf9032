#pragma once
// UTF-8: one character at a time, what is valid, and what stands in for what is not.

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace dstrain::utf8 {

struct Decoded {
  std::uint32_t code;
  std::uint32_t size;  // bytes
};

// The character at `at`. REQUIRES: text is valid UTF-8 and at < text.size().
inline Decoded decode(std::string_view text, std::size_t at) {
  const auto byte = [&](std::size_t i) { return static_cast<std::uint32_t>(static_cast<unsigned char>(text[at + i])); };
  const std::uint32_t c = byte(0);
  if (c < 0x80) return {c, 1};
  if (c < 0xe0) return {(c & 0x1fu) << 6 | (byte(1) & 0x3fu), 2};
  if (c < 0xf0) return {(c & 0x0fu) << 12 | (byte(1) & 0x3fu) << 6 | (byte(2) & 0x3fu), 3};
  return {(c & 0x07u) << 18 | (byte(1) & 0x3fu) << 12 | (byte(2) & 0x3fu) << 6 | (byte(3) & 0x3fu), 4};
}

// The character that ends at `end`. REQUIRES: text is valid UTF-8 and 0 < end <= text.size().
inline Decoded decode_before(std::string_view text, std::size_t end) {
  std::size_t at = end - 1;
  while (at > 0 && (static_cast<unsigned char>(text[at]) & 0xc0u) == 0x80) --at;
  return decode(text, at);
}

// Appends a character. REQUIRES: code is a Unicode scalar value.
void append(std::string& out, std::uint32_t code);

// Bytes of the valid UTF-8 at the front of `text`.
std::size_t valid_prefix(std::string_view text);

// Length of the ill-formed sequence at the front of `text`, which is not valid there: Unicode's maximal subpart, as
// Python's errors='replace' and Rust's from_utf8_lossy count them.
std::size_t invalid_prefix(std::string_view text);

// `text` with U+FFFD in place of each ill-formed sequence; `text` itself in `storage`'s place when there is none.
std::string_view replace_invalid(std::string_view text, std::string& storage);

}  // namespace dstrain::utf8
