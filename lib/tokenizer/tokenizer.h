#pragma once
// Text to ids and back: Hugging Face's tokenizer.json. Ids are those of PyPI tokenizers: docs/tokenizer.md says of
// what, and what is refused.

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "lib/core/files.h"
#include "lib/core/shape.h"
#include "lib/tokenizer/merge.h"
#include "lib/tokenizer/split.h"

namespace dstrain {

class Model;

inline constexpr const char* kEndOfDocument = "<|endoftext|>";

// Immutable; copies share what they hold; shared between threads.
class Tokenizer {
 public:
  // Reads a tokenizer.json (at most 256 MiB). Whatever is not supported is refused by name: Error{data} with path and
  // key. One of its special tokens must be known as an end of document (docs/tokenizer.md).
  static Tokenizer load(const Files& files, const std::string& path);
  // The same from text; `path` is only named.
  static Tokenizer parse(const std::string& text, const std::string& path);

  // A byte-level BPE. `tokens[id]` is the byte string of an id but for id 0, kEndOfDocument. Merges in order of rank.
  static Tokenizer byte_level(Split split, const std::vector<std::string>& tokens, const std::vector<Merge>& merges);

  // tokenizer.json as PyPI tokenizers loads it, always in one layout.
  std::string to_json() const;

  Index vocab_size() const;  // with the added tokens
  std::int32_t end_of_document() const;
  // XXH3 of to_json(): the same for a file and its copy with other white space or other spellings of the same.
  std::uint64_t hash() const;

  // A token as the file spells it. REQUIRES: 0 <= id < vocab_size().
  const std::string& token(std::int32_t id) const;
  const Model& model() const;

  // The text of the ids, special tokens as their text. Byte-level tokenizers give the very bytes; the others text, as
  // PyPI tokenizers does. Throws Error{data} on an id outside the vocabulary.
  std::string decode(std::span<const std::int32_t> ids) const;

 private:
  friend class Encoder;
  struct Data;
  explicit Tokenizer(std::shared_ptr<const Data> data) : data_(std::move(data)) {}
  std::shared_ptr<const Data> data_;
};

struct EncodeOptions {
  // Text that looks like a special token becomes its id. Otherwise it is text. Added tokens that are not special are
  // found either way.
  bool special_tokens = false;
  // The ids that the post-processor puts around a text (TemplateProcessing and the like).
  bool template_tokens = false;
};

// Encodes with one thread's caches. The tokenizer's data stays alive with it.
class Encoder {
 public:
  explicit Encoder(const Tokenizer& tokenizer);
  ~Encoder();
  Encoder(Encoder&&) noexcept;

  // Appends the ids of `text`. In a byte-level tokenizer, bytes that are not UTF-8 are pieces of their own and come
  // back from decode(); the others see U+FFFD in their place, as Python's errors="replace" puts it. Linear in the text
  // but for a logarithm in the length of one piece (and for a regex that is not; see RegexMatcher::find). Throws
  // Error{data} when the text has no ids: an unknown token that the vocabulary lacks, a regex that explodes.
  void encode(std::string_view text, std::vector<std::int32_t>& ids, EncodeOptions options = {});

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace dstrain
