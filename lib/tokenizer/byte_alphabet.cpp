#include "lib/tokenizer/byte_alphabet.h"

#include <array>

#include "lib/tokenizer/utf8.h"

namespace dstrain {

namespace {

struct Alphabet {
  std::array<std::uint16_t, 256> character{};
  std::array<std::int16_t, 512> byte{};

  Alphabet() {
    byte.fill(-1);
    std::uint16_t next = 256;
    for (unsigned b = 0; b < 256; ++b) {
      const bool printable = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
      character[b] = printable ? static_cast<std::uint16_t>(b) : next++;
      byte[character[b]] = static_cast<std::int16_t>(b);
    }
  }
};

const Alphabet& alphabet() {
  static const Alphabet a;
  return a;
}

}  // namespace

void spell_bytes(std::string_view bytes, std::string& out) {
  for (const char b : bytes) utf8::append(out, alphabet().character[static_cast<unsigned char>(b)]);
}

std::string spell_bytes(std::string_view bytes) {
  std::string out;
  spell_bytes(bytes, out);
  return out;
}

int byte_of(std::uint32_t code) { return code < 512 ? alphabet().byte[code] : -1; }

bool unspell_bytes(std::string_view text, std::string& bytes) {
  bytes.clear();
  for (std::size_t i = 0; i < text.size();) {
    const auto [code, size] = utf8::decode(text, i);
    const int byte = byte_of(code);
    if (byte < 0) return false;
    bytes += static_cast<char>(byte);
    i += size;
  }
  return true;
}

}  // namespace dstrain
