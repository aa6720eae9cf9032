#include "lib/tokenizer/added_tokens.h"

#include <algorithm>
#include <unordered_map>

#include "lib/core/errors.h"
#include "lib/tokenizer/unicode.h"
#include "lib/tokenizer/utf8.h"

namespace dstrain {

AddedTokens::AddedTokens(const JsonNode& node, const Vocabulary& vocabulary, const Normalizer* normalizer)
    : size_(vocabulary.size()) {
  if (node.is_null()) return;
  node.array();
  std::unordered_map<std::string, std::int32_t> ids;
  for (std::size_t i = 0; i < node.size(); ++i) {
    const JsonNode row = node[i];
    row.only({"id", "content", "single_word", "lstrip", "rstrip", "normalized", "special"});
    AddedToken t{.id = static_cast<std::int32_t>(row["id"].integer(0, static_cast<std::int64_t>(kMaxVocabulary) - 1)),
                 .content = row["content"].text(),
                 .single_word = row["single_word"].flag(),
                 .lstrip = row["lstrip"].flag(),
                 .rstrip = row["rstrip"].flag(),
                 .normalized = row["normalized"].flag(),
                 .special = row["special"].flag()};
    if (t.content.empty()) row.refuse("an empty token");
    if (t.content.size() > kMaxTrieString) row.refuse("a token of more than 1024 bytes is not supported");
    const std::int32_t known = vocabulary.find(t.content);
    const std::int32_t expected = known != kNoToken ? known : static_cast<std::int32_t>(size_);
    if (!ids.emplace(t.content, t.id).second) row["content"].refuse("is there twice");
    if (t.id != expected)
      row["id"].refuse(format("this token's id is {}: the vocabulary's, or the next free one", expected));
    size_ = std::max(size_, static_cast<std::size_t>(t.id) + 1);
    tokens_.push_back(std::move(t));
  }
  std::sort(tokens_.begin(), tokens_.end(), [](const AddedToken& a, const AddedToken& b) { return a.id < b.id; });

  NormalizerScratch scratch;
  for (std::size_t i = 0; i < tokens_.size(); ++i) {
    const AddedToken& t = tokens_[i];
    std::string text = t.content;
    if (t.normalized && normalizer != nullptr) {
      NormalText n{.text = text};
      normalizer->apply(n, scratch);
      text = std::move(n.text);
    }
    ByteTrie& trie = t.normalized ? after_ : before_;
    std::int32_t other = kNoToken;
    require(!text.empty() && text.size() <= kMaxTrieString, ExitCode::data,
            "{}: '{}': its normalized text has {} bytes; 1 to {} are supported", node.place(), t.content, text.size(),
            kMaxTrieString);
    require(trie.longest(text, other) != text.size(), ExitCode::data,
            "{}: '{}' and '{}' are the same text after normalization", node.place(), t.content,
            other == kNoToken ? "" : tokens_[static_cast<std::size_t>(other)].content);
    trie.add(text, static_cast<std::int32_t>(i));
    shown_.push_back(std::move(text));
    if (!t.special) plain_[t.normalized ? 1 : 0] = true;
  }
}

const AddedToken* AddedTokens::find_id(std::int32_t id) const {
  const auto found = std::lower_bound(tokens_.begin(), tokens_.end(), id,
                                      [](const AddedToken& t, std::int32_t i) { return t.id < i; });
  return found != tokens_.end() && found->id == id ? &*found : nullptr;
}

void AddedTokens::find(std::string_view text, bool normalized, bool special, std::vector<AddedPart>& parts) const {
  const ByteTrie& trie = normalized ? after_ : before_;
  if (trie.empty()) {
    if (!text.empty()) parts.push_back({kNoToken, 0, text.size()});
    return;
  }
  std::size_t done = 0;
  const auto space_before = [&](std::size_t at) {
    while (at > 0) {
      const auto c = utf8::decode_before(text, at);
      if (!unicode::is_white_space(c.code)) break;
      at -= c.size;
      if (at < done) break;
    }
    return at;
  };
  for (std::size_t at = 0; at < text.size();) {
    std::int32_t index = kNoToken;
    const std::size_t length = trie.longest(text.substr(at), index);
    if (length == 0) {
      ++at;
      continue;
    }
    const AddedToken& t = tokens_[static_cast<std::size_t>(index)];
    std::size_t begin = at, end = at + length;
    at = end;
    if (t.special && !special) continue;
    if (t.single_word && ((begin > 0 && unicode::is_word(utf8::decode_before(text, begin).code)) ||
                          (end < text.size() && unicode::is_word(utf8::decode(text, end).code))))
      continue;
    if (t.lstrip) begin = std::max(space_before(begin), done);
    if (t.rstrip)
      while (end < text.size() && unicode::is_white_space(utf8::decode(text, end).code))
        end += utf8::decode(text, end).size;
    if (done < begin) parts.push_back({kNoToken, done, begin});
    parts.push_back({t.id, begin, end});
    done = end;
  }
  if (done != text.size()) parts.push_back({kNoToken, done, text.size()});
}

void AddedTokens::append_json(std::string& out) const {
  OrderedJson list = OrderedJson::array();
  for (const AddedToken& t : tokens_)
    list.push_back({{"id", t.id},
                    {"content", t.content},
                    {"single_word", t.single_word},
                    {"lstrip", t.lstrip},
                    {"rstrip", t.rstrip},
                    {"normalized", t.normalized},
                    {"special", t.special}});
  out += list.dump();
}

}  // namespace dstrain
