#pragma once
// The added tokens of tokenizer.json: text that becomes one id before anything else looks at it.

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_set>
#include <vector>

#include "lib/tokenizer/json.h"
#include "lib/tokenizer/model.h"
#include "lib/tokenizer/normalizer.h"
#include "lib/tokenizer/trie.h"

namespace dstrain {

struct AddedToken {
  std::int32_t id;
  std::string content;
  bool single_word, lstrip, rstrip, normalized, special;
};

// A part of a text: an added token's place, or what lies between (id kNoToken).
struct AddedPart {
  std::int32_t id;
  std::size_t begin, end;
};

// Immutable.
class AddedTokens {
 public:
  // Every id must be the one that PyPI tokenizers gives: the vocabulary's for a token that it has, else the next free.
  AddedTokens(const JsonNode& node, const Vocabulary& vocabulary, const Normalizer* normalizer);

  // Appends the parts of `text` by the tokens that are matched before (`normalized` false) or after normalization: from
  // the left, the longest of those that start at a place. Special tokens are passed over unless `special`.
  void find(std::string_view text, bool normalized, bool special, std::vector<AddedPart>& parts) const;
  // Whether find() with these flags could find anything.
  bool any(bool normalized, bool special) const {
    return special ? !(normalized ? after_ : before_).empty() : plain_[normalized ? 1 : 0];
  }

  const std::vector<AddedToken>& tokens() const { return tokens_; }  // by id
  const AddedToken* find_id(std::int32_t id) const;
  // What decoding shows of a token: its normalized text, where that is what is matched.
  const std::string& shown(const AddedToken& token) const {
    return shown_[static_cast<std::size_t>(&token - tokens_.data())];
  }
  // One more than the highest id of added tokens and vocabulary.
  std::size_t size() const { return size_; }
  void append_json(std::string& out) const;

 private:
  std::vector<AddedToken> tokens_;
  std::vector<std::string> shown_;
  ByteTrie before_, after_;  // text -> index in tokens_
  bool plain_[2] = {};       // before and after: whether there are tokens that are not special
  std::size_t size_ = 0;
};

}  // namespace dstrain
