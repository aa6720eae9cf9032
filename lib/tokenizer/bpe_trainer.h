#pragma once
// Trains a byte-level BPE: the merges of PyPI tokenizers' BpeTrainer (initial_alphabet = ByteLevel, one special token),
// ties included, found by occurrence lists: O(bytes of distinct pieces) merges in all, whatever the text.

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "lib/tokenizer/split.h"
#include "lib/tokenizer/tokenizer.h"

namespace dstrain {

class BpeTrainer {
 public:
  explicit BpeTrainer(Split split) : split_(split) {}

  // Counts the pieces of one document. Bytes that are not UTF-8 are pieces of their own.
  void add(std::string_view text);
  // Adds what another has counted. REQUIRES: the same split.
  void absorb(const BpeTrainer& other);
  std::size_t distinct_pieces() const { return counts_.size(); }

  // `vocab_size` counts the end-of-document token (id 0) and the 256 bytes; the result has fewer when no pair is left
  // that occurs `min_frequency` times. REQUIRES: vocab_size >= 257.
  Tokenizer train(Index vocab_size, std::int64_t min_frequency = 0) const;

 private:
  Split split_;
  std::vector<std::size_t> ends_;
  struct Hash {
    using is_transparent = void;
    std::size_t operator()(std::string_view s) const;
  };
  std::unordered_map<std::string, std::int64_t, Hash, std::equal_to<>> counts_;
};

}  // namespace dstrain
