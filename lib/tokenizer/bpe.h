#pragma once
// Byte pair encoding (Sennrich et al. 2016): neighbours merge, the pair of lowest rank first.

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "lib/tokenizer/merge.h"
#include "lib/tokenizer/model.h"

namespace dstrain {

class Bpe final : public Model {
 public:
  Bpe(const JsonNode& node, bool bytes);
  const Vocabulary& vocabulary() const override { return vocabulary_; }
  const std::vector<Merge>& merges() const { return merges_; }  // in order of rank
  std::unique_ptr<PieceEncoder> encoder() const override;
  void append_json(std::string& out) const override;

 private:
  friend class BpeEncoder;
  static constexpr std::int32_t kNoRank = INT32_MAX;
  // Open addressing: (left, right) -> rank; the key is left << 32 | right.
  struct Slot {
    std::uint64_t key;
    std::int32_t rank;
    std::int32_t result;
  };
  const Slot& find(std::int32_t left, std::int32_t right) const;
  void read_merges(const JsonNode& node);
  // Appends the ids that a piece starts with, before merging.
  void start(std::string_view piece, std::vector<std::int32_t>& ids) const;
  void start_characters(std::string_view piece, std::vector<std::int32_t>& ids) const;
  std::int32_t unknown() const;

  std::string place_;
  Vocabulary vocabulary_;
  std::vector<Merge> merges_;
  std::vector<Slot> slots_;
  std::optional<std::string> unknown_, prefix_, suffix_;
  bool fuse_unknown_ = false, byte_fallback_ = false, ignore_merges_ = false;
  bool bytes_;                                                  // pieces are bytes, spelled in the vocabulary
  bool all_bytes_ = false;                                      // and every byte has a token
  std::array<std::int32_t, 256> byte_ids_{};                    // of the characters that spell bytes
  std::array<std::int32_t, 256> fallback_ids_{};                // of <0x00> and on
  std::unordered_map<std::uint32_t, std::int32_t> characters_;  // tokens of one character
};

}  // namespace dstrain
