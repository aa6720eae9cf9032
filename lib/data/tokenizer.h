#pragma once
// Byte-level BPE: Hugging Face's tokenizer.json, encode and decode. Every byte string encodes and decodes to itself.

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "lib/core/files.h"
#include "lib/core/shape.h"
#include "lib/data/split.h"

namespace dstrain {

inline constexpr const char* kEndOfDocument = "<|endoftext|>";

struct Merge {
  std::int32_t left, right, result;
};

// Immutable; shared between threads.
class Tokenizer {
 public:
  // Reads a tokenizer.json (at most 256 MiB): model BPE over bytes, with one of the known splits, no normalizer,
  // special tokens only as added tokens. Anything else is refused by name: Error{data} with path and key.
  static Tokenizer load(const Files& files, const std::string& path);
  // The same from text; `path` is only named.
  static Tokenizer parse(const std::string& text, const std::string& path);

  // `tokens[id]` is the byte string of an id; `special` are ids whose text is never produced by encode(). Merges in
  // order of rank. end_of_document must be special.
  Tokenizer(Split split, std::vector<std::string> tokens, std::vector<std::int32_t> special, std::vector<Merge> merges,
            std::int32_t end_of_document);

  // tokenizer.json as PyPI tokenizers loads it.
  std::string to_json() const;

  Index vocab_size() const { return static_cast<Index>(tokens_.size()); }
  std::int32_t end_of_document() const { return end_of_document_; }
  // XXH3 of everything that decides encode(): the same for a file and its copy with other white space.
  std::uint64_t hash() const { return hash_; }
  Split split() const { return split_; }
  const std::vector<Merge>& merges() const { return merges_; }
  const std::vector<std::string>& tokens() const { return tokens_; }

  // The bytes of the ids, special tokens as their text. Throws Error{data} on an id outside the vocabulary.
  std::string decode(std::span<const std::int32_t> ids) const;

 private:
  friend class Encoder;
  Split split_;
  std::vector<std::string> tokens_;
  std::vector<std::int32_t> special_;
  std::vector<Merge> merges_;
  std::int32_t end_of_document_;
  std::uint64_t hash_ = 0;
  std::vector<std::int32_t> byte_ids_;  // (256)
  // Open addressing: (left, right) -> rank; the key is left << 32 | right.
  struct Slot {
    std::uint64_t key;
    std::int32_t rank;
  };
  std::vector<Slot> slots_;
  std::int32_t rank_of(std::int32_t left, std::int32_t right) const;
};

// Encodes with one thread's caches. The tokenizer must outlive it.
class Encoder {
 public:
  explicit Encoder(const Tokenizer& tokenizer);
  ~Encoder();
  Encoder(Encoder&&) noexcept;

  // Appends the ids of `text`. Text that looks like a special token is text: it never becomes the special id. Linear in
  // the text but for a logarithm in the length of one piece.
  void encode(std::string_view text, std::vector<std::int32_t>& ids);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// The bytes of text behind one character of GPT-2's byte alphabet, and back: tokenizer.json spells bytes as characters.
std::string spell_bytes(std::string_view bytes);

}  // namespace dstrain
