#include "lib/tokenizer/utf8.h"

#include <algorithm>
#include <cstring>

namespace dstrain::utf8 {

namespace {

// The bytes of a character whose first byte is `c`, and the range of the second; 0 when no character starts so.
struct Lead {
  std::size_t size;
  unsigned low, high;
};
Lead lead(unsigned c) {
  if (c < 0x80) return {1, 0, 0};
  if (c < 0xc2) return {0, 0, 0};
  if (c < 0xe0) return {2, 0x80, 0xbf};
  if (c == 0xe0) return {3, 0xa0, 0xbf};
  if (c == 0xed) return {3, 0x80, 0x9f};
  if (c < 0xf0) return {3, 0x80, 0xbf};
  if (c == 0xf0) return {4, 0x90, 0xbf};
  if (c < 0xf4) return {4, 0x80, 0xbf};
  if (c == 0xf4) return {4, 0x80, 0x8f};
  return {0, 0, 0};
}

// How many bytes at `at` belong together, and whether they are a character.
std::pair<std::size_t, bool> sequence(std::string_view s, std::size_t at) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned>(static_cast<unsigned char>(s[i])); };
  const Lead l = lead(byte(at));
  if (l.size == 1) return {1, true};
  if (l.size == 0 || at + 1 >= s.size() || byte(at + 1) < l.low || byte(at + 1) > l.high) return {1, false};
  for (std::size_t k = 2; k < l.size; ++k)
    if (at + k >= s.size() || (byte(at + k) & 0xc0u) != 0x80) return {k, false};
  return {l.size, true};
}

}  // namespace

void append(std::string& out, std::uint32_t code) {
  const auto put = [&](std::uint32_t b) { out += static_cast<char>(b); };
  if (code < 0x80) {
    put(code);
  } else if (code < 0x800) {
    put(0xc0u | code >> 6);
    put(0x80u | (code & 0x3fu));
  } else if (code < 0x10000) {
    put(0xe0u | code >> 12);
    put(0x80u | (code >> 6 & 0x3fu));
    put(0x80u | (code & 0x3fu));
  } else {
    put(0xf0u | code >> 18);
    put(0x80u | (code >> 12 & 0x3fu));
    put(0x80u | (code >> 6 & 0x3fu));
    put(0x80u | (code & 0x3fu));
  }
}

std::size_t valid_prefix(std::string_view text) {
  std::size_t i = 0;
  while (i < text.size()) {
    // Eight ASCII bytes at a time.
    if (i + 8 <= text.size()) {
      std::uint64_t eight;
      std::memcpy(&eight, text.data() + i, 8);
      if ((eight & 0x8080808080808080ull) == 0) {
        i += 8;
        continue;
      }
    }
    const auto [size, valid] = sequence(text, i);
    if (!valid) return i;
    i += size;
  }
  return i;
}

std::size_t invalid_prefix(std::string_view text) { return text.empty() ? 0 : sequence(text, 0).first; }

std::string_view replace_invalid(std::string_view text, std::string& storage) {
  std::size_t good = valid_prefix(text);
  if (good == text.size()) return text;
  storage.clear();
  while (true) {
    storage.append(text, 0, good);
    text.remove_prefix(good);
    if (text.empty()) return storage;
    storage += "\xef\xbf\xbd";
    text.remove_prefix(invalid_prefix(text));
    good = valid_prefix(text);
  }
}

}  // namespace dstrain::utf8
