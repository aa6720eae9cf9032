#pragma once
// Trains a byte-level BPE: the merges of PyPI tokenizers' BpeTrainer (initial_alphabet = ByteLevel, one special token),
// ties included, found by occurrence lists: O(bytes of distinct pieces) merges in all, whatever the text.

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "lib/core/thread_pool.h"
#include "lib/tokenizer/piece_counter.h"
#include "lib/tokenizer/split.h"
#include "lib/tokenizer/tokenizer.h"

namespace dstrain {

class BpeTrainer {
 public:
  explicit BpeTrainer(Split split) : split_(split), counters_(1, PieceCounter(split)) {}

  // Counts the pieces of one document. Bytes that are not UTF-8 are pieces of their own.
  void add(std::string_view text) { counters_[0].add_text(text); }
  // The same for many, on all threads of a pool. The counts do not depend on how many there are.
  void add(std::span<const std::string> documents, ThreadPool& pool);

  // `vocab_size` counts the end-of-document token (id 0) and the 256 bytes; the result has fewer when no pair is left
  // that occurs `min_frequency` times. REQUIRES: vocab_size >= 257.
  Tokenizer train(Index vocab_size, std::int64_t min_frequency = 0) const;

 private:
  Split split_;
  std::vector<PieceCounter> counters_;  // one a thread
};

}  // namespace dstrain
