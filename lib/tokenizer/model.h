#pragma once
// What the three models share: a vocabulary, and an encoder of pieces for each thread.

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "lib/tokenizer/json.h"

namespace dstrain {

inline constexpr std::int32_t kNoToken = -1;
inline constexpr std::size_t kMaxVocabulary = 1u << 24;

// Tokens by id, and ids by token.
class Vocabulary {
 public:
  // From an object {token: id}: every id from 0 on is used once. Throws Error{data}.
  static Vocabulary from_object(const JsonNode& node);
  // Tokens in order; of equal ones the last is found.
  explicit Vocabulary(std::vector<std::string> tokens);

  std::size_t size() const { return tokens_.size(); }
  const std::string& token(std::int32_t id) const { return tokens_[static_cast<std::size_t>(id)]; }
  const std::vector<std::string>& tokens() const { return tokens_; }
  std::int32_t find(std::string_view token) const;  // kNoToken when it is not there

 private:
  std::vector<std::string> tokens_;
  std::vector<std::int32_t> slots_;  // open addressing
};

// Encodes with one thread's memory. The model outlives it.
class PieceEncoder {
 public:
  virtual ~PieceEncoder() = default;
  // Appends the ids of a piece, which is not empty. Throws Error{data} when the piece has no ids.
  virtual void encode(std::string_view piece, std::vector<std::int32_t>& ids) = 0;
};

// Immutable.
class Model {
 public:
  virtual ~Model() = default;
  virtual const Vocabulary& vocabulary() const = 0;
  virtual std::unique_ptr<PieceEncoder> encoder() const = 0;
  // The model as PyPI tokenizers writes it, appended to `out`.
  virtual void append_json(std::string& out) const = 0;
};

// Reads "model". `bytes`: pieces reach the model as bytes that it must take as spelled (PreTokenizers::bytes). Throws
// Error{data} with the place of what is wrong or not supported.
std::unique_ptr<const Model> read_model(const JsonNode& node, bool bytes);

std::unique_ptr<const Model> read_bpe(const JsonNode& node, bool bytes);
std::unique_ptr<const Model> read_word_piece(const JsonNode& node);
std::unique_ptr<const Model> read_unigram(const JsonNode& node);

// Appends {"token":id,...}.
void append_vocabulary(const Vocabulary& vocabulary, std::string& out);
void append_quoted(std::string_view text, std::string& out);

}  // namespace dstrain
