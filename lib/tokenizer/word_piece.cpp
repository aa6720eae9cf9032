// WordPiece: the longest token at the front, again and again (Schuster and Nakajima 2012; BERT).

#include "lib/core/errors.h"
#include "lib/tokenizer/model.h"
#include "lib/tokenizer/trie.h"
#include "lib/tokenizer/utf8.h"

namespace dstrain {

namespace {

class WordPiece final : public Model {
 public:
  explicit WordPiece(const JsonNode& node)
      : place_(node.place()),
        vocabulary_(Vocabulary::from_object(node["vocab"])),
        unknown_(node["unk_token"].text()),
        prefix_(node["continuing_subword_prefix"].text()),
        longest_word_(node["max_input_chars_per_word"].integer(0, INT64_MAX)) {
    node.only({"type", "unk_token", "continuing_subword_prefix", "max_input_chars_per_word", "vocab"});
    unknown_id_ = vocabulary_.find(unknown_);
    for (std::size_t id = 0; id < vocabulary_.size(); ++id) {
      const std::string& token = vocabulary_.tokens()[id];
      if (token.size() > kMaxTrieString)
        node["vocab"][token].refuse("a token of more than 1024 bytes is not supported");
      if (!token.empty()) first_.add(token, static_cast<std::int32_t>(id));
      if (token.starts_with(prefix_) && token.size() > prefix_.size())
        later_.add(std::string_view(token).substr(prefix_.size()), static_cast<std::int32_t>(id));
    }
  }
  const Vocabulary& vocabulary() const override { return vocabulary_; }
  std::unique_ptr<PieceEncoder> encoder() const override;
  void append_json(std::string& out) const override {
    OrderedJson head = {{"type", "WordPiece"},
                        {"unk_token", unknown_},
                        {"continuing_subword_prefix", prefix_},
                        {"max_input_chars_per_word", longest_word_}};
    const std::string text = head.dump();
    out.append(text, 0, text.size() - 1);
    out += ",\"vocab\":";
    append_vocabulary(vocabulary_, out);
    out += '}';
  }

  void encode(std::string_view word, std::vector<std::int32_t>& ids) const {
    const std::size_t before = ids.size();
    std::int64_t characters = 0;
    for (const char c : word) characters += (static_cast<unsigned char>(c) & 0xc0u) != 0x80;
    bool known = characters <= longest_word_;
    for (std::size_t at = 0; known && at < word.size();) {
      std::int32_t id = kNoToken;
      const std::size_t length = (at == 0 ? first_ : later_).longest(word.substr(at), id);
      known = length > 0;
      at += length;
      ids.push_back(id);
    }
    if (known) return;
    require(unknown_id_ != kNoToken, ExitCode::data, "{}.unk_token: '{}' is not in the vocabulary, and a word needs it",
            place_, unknown_);
    ids.resize(before);
    ids.push_back(unknown_id_);
  }

 private:
  std::string place_;
  Vocabulary vocabulary_;
  std::string unknown_, prefix_;
  std::int64_t longest_word_;
  std::int32_t unknown_id_ = kNoToken;
  ByteTrie first_, later_;  // tokens; those with the prefix, without it
};

class WordPieceEncoder final : public PieceEncoder {
 public:
  explicit WordPieceEncoder(const WordPiece& model) : model_(model) {}
  void encode(std::string_view piece, std::vector<std::int32_t>& ids) override { model_.encode(piece, ids); }

 private:
  const WordPiece& model_;
};

std::unique_ptr<PieceEncoder> WordPiece::encoder() const { return std::make_unique<WordPieceEncoder>(*this); }

}  // namespace

std::unique_ptr<const Model> read_word_piece(const JsonNode& node) { return std::make_unique<WordPiece>(node); }

}  // namespace dstrain
