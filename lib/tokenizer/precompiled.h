#pragma once
// SentencePiece's compiled character map: a double-array trie from characters to their replacements, as the normalizer
// Precompiled of tokenizer.json holds it in base64.

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "lib/tokenizer/json.h"

namespace dstrain {

class CharactersMap {
 public:
  // Reads base64 of: bytes of the trie (u32), the trie, texts that each end in a zero byte. Throws Error{data}.
  explicit CharactersMap(const JsonNode& node);
  // Appends `text` with its grapheme clusters, or else its characters, replaced, and returns how many bytes of that
  // stand for the first `zero` bytes of `text`. Throws Error{data} when the trie leads nowhere.
  std::size_t append(std::string& out, std::string_view text, std::size_t zero) const;
  const std::string& base64() const { return base64_; }

 private:
  bool replacement(std::string_view key, std::string_view& found) const;
  std::string base64_, place_;
  std::vector<std::uint32_t> units_;
  std::string texts_;
};

}  // namespace dstrain
