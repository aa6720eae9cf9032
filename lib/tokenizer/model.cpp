#include "lib/tokenizer/model.h"

#include <bit>

#include "lib/core/errors.h"
#include "lib/core/hash.h"

namespace dstrain {

Vocabulary Vocabulary::from_object(const JsonNode& node) {
  if (!node.value().is_object()) node.refuse("expected an object of tokens and ids");
  std::vector<std::string> tokens(node.size());
  std::vector<bool> used(node.size());
  for (const auto& [token, id] : node.value().items()) {
    const auto at = static_cast<std::size_t>(
        node[token].integer(0, static_cast<std::int64_t>(std::min(kMaxVocabulary, node.size())) - 1));
    require(!used[at], ExitCode::data, "{}: id {} is there twice, for '{}' and '{}'", node.place(), at, tokens[at],
            token);
    used[at] = true;
    tokens[at] = token;
  }
  return Vocabulary(std::move(tokens));
}

Vocabulary::Vocabulary(std::vector<std::string> tokens)
    : tokens_(std::move(tokens)), slots_(std::bit_ceil(tokens_.size() * 2 + 2), kNoToken) {
  const std::size_t mask = slots_.size() - 1;
  for (std::size_t id = 0; id < tokens_.size(); ++id) {
    std::size_t i = xxh3(tokens_[id]) & mask;
    while (slots_[i] != kNoToken && token(slots_[i]) != tokens_[id]) i = (i + 1) & mask;
    slots_[i] = static_cast<std::int32_t>(id);
  }
}

std::int32_t Vocabulary::find(std::string_view token_text) const {
  const std::size_t mask = slots_.size() - 1;
  for (std::size_t i = xxh3(token_text) & mask;; i = (i + 1) & mask)
    if (slots_[i] == kNoToken || token(slots_[i]) == token_text) return slots_[i];
}

std::unique_ptr<const Model> read_model(const JsonNode& node, bool bytes) {
  if (!node.value().is_object()) node.refuse("expected a model");
  const std::string type = node["type"].is_null() ? "" : node["type"].text();
  if (type == "BPE") return read_bpe(node, bytes);
  if (type == "WordPiece") return read_word_piece(node);
  if (type == "Unigram") return read_unigram(node);
  node["type"].refuse("is not supported: expected BPE, WordPiece or Unigram");
}

void append_quoted(std::string_view text, std::string& out) {
  // Nearly all tokens need no escapes.
  bool plain = true;
  for (const char c : text)
    plain = plain && static_cast<unsigned char>(c) >= 0x20 && c != '"' && c != '\\' && c != 0x7f;
  if (plain) {
    out += '"';
    out += text;
    out += '"';
  } else {
    out += Json(text).dump();
  }
}

void append_vocabulary(const Vocabulary& vocabulary, std::string& out) {
  out += '{';
  for (std::size_t id = 0; id < vocabulary.size(); ++id) {
    if (id > 0) out += ',';
    append_quoted(vocabulary.tokens()[id], out);
    out += ':';
    out += std::to_string(id);
  }
  out += '}';
}

}  // namespace dstrain
