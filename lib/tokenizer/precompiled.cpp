#include "lib/tokenizer/precompiled.h"

#include <utf8proc.h>

#include <cstring>

#include "lib/core/errors.h"
#include "lib/tokenizer/utf8.h"

namespace dstrain {

namespace {

constexpr std::size_t kShortCluster = 6;  // bytes; longer clusters are mapped by character

std::string decode_base64(const JsonNode& node, const std::string& text) {
  constexpr std::string_view kAlphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string out;
  std::uint32_t bits = 0;
  std::size_t digits = 0;
  for (const char c : text) {
    if (c == '=') break;
    const auto value = kAlphabet.find(c);
    if (value == std::string_view::npos) node.refuse("not base64");
    bits = bits << 6 | static_cast<std::uint32_t>(value);
    if (++digits % 4 == 0)
      for (int shift = 16; shift >= 0; shift -= 8) out += static_cast<char>(bits >> shift & 0xff);
  }
  const std::size_t left = digits % 4;
  if (text.size() % 4 != 0 || left == 1 || text.size() - digits != (4 - left) % 4) node.refuse("not base64");
  if (left >= 2) out += static_cast<char>(bits >> (left == 2 ? 4 : 10) & 0xff);
  if (left == 3) out += static_cast<char>(bits >> 2 & 0xff);
  return out;
}

}  // namespace

CharactersMap::CharactersMap(const JsonNode& node) : base64_(node.text()), place_(node.place()) {
  const std::string bytes = decode_base64(node, base64_);
  std::uint32_t size = 0;
  if (bytes.size() < 4) node.refuse("too short for a character map");
  std::memcpy(&size, bytes.data(), 4);
  if (size % 4 != 0 || size == 0 || size > bytes.size() - 4) node.refuse("its trie does not fit in it");
  units_.resize(size / 4);
  std::memcpy(units_.data(), bytes.data() + 4, size);
  texts_ = bytes.substr(4 + size);
  if (utf8::valid_prefix(texts_) != texts_.size()) node.refuse("its texts are not UTF-8");
}

// Darts' units: 8 bits of label and its high bit, a leaf's mark, an offset of 22 bits that may count in 256s.
bool CharactersMap::replacement(std::string_view key, std::string_view& found) const {
  const auto unit = [&](std::size_t at) {
    require(at < units_.size(), ExitCode::data, "{}: its trie leads to unit {} of {}", place_, at, units_.size());
    return units_[at];
  };
  const auto offset = [](std::uint32_t u) { return static_cast<std::size_t>(u >> 10) << ((u & 0x200u) >> 6); };
  std::size_t at = offset(unit(0));
  for (const char c : key) {
    const auto byte = static_cast<std::uint32_t>(static_cast<unsigned char>(c));
    if (byte == 0) return false;
    at ^= byte;
    const std::uint32_t u = unit(at);
    if ((u & 0x800000ffu) != byte) return false;
    at ^= offset(u);
    if ((u >> 8 & 1u) == 0) continue;
    // The shortest prefix counts, as in the reference.
    const std::size_t begin = unit(at) & 0x7fffffffu;
    require(begin <= texts_.size() &&
                (begin == texts_.size() || (static_cast<unsigned char>(texts_[begin]) & 0xc0u) != 0x80),
            ExitCode::data, "{}: its trie names the text at {}; there are {} bytes of texts", place_, begin,
            texts_.size());
    const auto end = texts_.find('\0', begin);
    found = std::string_view(texts_).substr(begin, end == std::string::npos ? end : end - begin);
    return true;
  }
  return false;
}

std::size_t CharactersMap::append(std::string& out, std::string_view text, std::size_t zero) const {
  std::size_t new_zero = 0;
  for (std::size_t at = 0; at < text.size();) {
    utf8proc_int32_t state = 0;
    auto last = utf8::decode(text, at);
    std::size_t end = at + last.size;
    while (end < text.size()) {
      const auto next = utf8::decode(text, end);
      if ((last.code < 0x300 && next.code < 0x300 && last.code != '\r') ||
          utf8proc_grapheme_break_stateful(static_cast<utf8proc_int32_t>(last.code),
                                           static_cast<utf8proc_int32_t>(next.code), &state))
        break;
      end += next.size;
      last = next;
    }
    const std::string_view cluster = text.substr(at, end - at);
    std::string_view found;
    if (cluster.size() < kShortCluster && replacement(cluster, found)) {
      out += found;
    } else {
      for (std::size_t i = 0; i < cluster.size();) {
        const std::string_view one = cluster.substr(i, utf8::decode(cluster, i).size);
        out += replacement(one, found) ? found : one;
        i += one.size();
      }
    }
    if (at < zero) new_zero = out.size();
    at = end;
  }
  return new_zero;
}

}  // namespace dstrain
