// Unigram: the most probable way to cut a piece into tokens (Kudo 2018), found by Viterbi's algorithm.

#include <algorithm>
#include <array>
#include <limits>

#include "lib/core/errors.h"
#include "lib/tokenizer/model.h"
#include "lib/tokenizer/trie.h"
#include "lib/tokenizer/utf8.h"

namespace dstrain {

namespace {

constexpr double kUnknownPenalty = 10;

struct Scored {
  std::vector<std::string> tokens;
  std::vector<double> scores;
};

Scored read_scores(const JsonNode& node) {
  node.array();
  Scored out;
  if (node.size() > kMaxVocabulary)
    fail(ExitCode::data, "{}: {} tokens; at most {} are read", node.place(), node.size(), kMaxVocabulary);
  for (std::size_t i = 0; i < node.size(); ++i) {
    const Json& row = node.value()[i];
    if (!row.is_array() || row.size() != 2) node[i].refuse("expected a token and its score");
    out.tokens.push_back(node[i][std::size_t{0}].text());
    out.scores.push_back(node[i][std::size_t{1}].real());
    if (out.tokens.back().size() > kMaxTrieString) node[i].refuse("a token of more than 1024 bytes is not supported");
  }
  return out;
}

class Unigram final : public Model {
 public:
  Unigram(const JsonNode& node, Scored scored)
      : place_(node.place()), scores_(std::move(scored.scores)), vocabulary_(std::move(scored.tokens)) {
    node.only({"type", "unk_id", "vocab", "byte_fallback"});
    byte_fallback_ = node["byte_fallback"].flag(false);
    if (!node["unk_id"].is_null())
      unknown_ =
          static_cast<std::int32_t>(node["unk_id"].integer(0, static_cast<std::int64_t>(vocabulary_.size()) - 1));
    for (std::size_t id = 0; id < vocabulary_.size(); ++id)
      if (!vocabulary_.tokens()[id].empty()) trie_.add(vocabulary_.tokens()[id], static_cast<std::int32_t>(id));
    double least = std::numeric_limits<double>::infinity();
    for (const double s : scores_) least = std::min(least, s);
    unknown_score_ = least - kUnknownPenalty;
    for (unsigned b = 0; b < 256; ++b) {
      constexpr const char* kDigits = "0123456789ABCDEF";
      byte_ids_[b] = vocabulary_.find(std::string("<0x") + kDigits[b >> 4] + kDigits[b & 15] + ">");
    }
  }
  const Vocabulary& vocabulary() const override { return vocabulary_; }
  std::unique_ptr<PieceEncoder> encoder() const override;
  void append_json(std::string& out) const override {
    out += "{\"type\":\"Unigram\",\"unk_id\":";
    out += unknown_ == kNoToken ? "null" : std::to_string(unknown_);
    out += ",\"vocab\":[";
    for (std::size_t i = 0; i < vocabulary_.size(); ++i) {
      out += i > 0 ? ",[" : "[";
      append_quoted(vocabulary_.tokens()[i], out);
      out += ',';
      out += Json(scores_[i]).dump();
      out += ']';
    }
    out += "],\"byte_fallback\":";
    out += byte_fallback_ ? "true}" : "false}";
  }

 private:
  friend class UnigramEncoder;
  std::int32_t unknown() const {
    require(unknown_ != kNoToken, ExitCode::data, "{}.unk_id: null, and the text has what no token covers", place_);
    return unknown_;
  }

  std::string place_;
  std::vector<double> scores_;
  Vocabulary vocabulary_;
  ByteTrie trie_;
  std::int32_t unknown_ = kNoToken;
  bool byte_fallback_ = false;
  double unknown_score_ = 0;
  std::array<std::int32_t, 256> byte_ids_{};
};

class UnigramEncoder final : public PieceEncoder {
 public:
  explicit UnigramEncoder(const Unigram& model) : model_(model) {}

  void encode(std::string_view piece, std::vector<std::int32_t>& ids) override {
    // The best way to each place; the earlier of equals stays, as in the reference.
    best_.assign(piece.size() + 1, {0, kNowhere, kNoToken});
    for (std::size_t at = 0; at < piece.size();) {
      const double here = best_[at].score;
      const std::size_t width = utf8::decode(piece, at).size;
      bool single = false;
      const auto offer = [&](std::size_t end, double score, std::int32_t id) {
        Step& s = best_[end];
        if (s.from == kNowhere || score > s.score) s = {score, at, id};
      };
      model_.trie_.prefixes(piece.substr(at), [&](std::size_t length, std::int32_t id) {
        offer(at + length, model_.scores_[static_cast<std::size_t>(id)] + here, id);
        single = single || length == width;
      });
      if (!single) offer(at + width, model_.unknown_score_ + here, model_.unknown());
      at += width;
    }
    // Backwards; neighbouring unknown tokens are one.
    path_.clear();
    for (std::size_t end = piece.size(); end > 0;) {
      const Step& s = best_[end];
      const bool unknown = s.id == model_.unknown_;
      if (unknown && !path_.empty() && path_.back().unknown)
        path_.back().begin = s.from;
      else
        path_.push_back({s.from, end, unknown});
      end = s.from;
    }
    for (auto p = path_.rbegin(); p != path_.rend(); ++p) append(piece.substr(p->begin, p->end - p->begin), ids);
  }

 private:
  static constexpr std::size_t kNowhere = ~std::size_t{0};
  struct Step {
    double score;
    std::size_t from;
    std::int32_t id;
  };
  struct Token {
    std::size_t begin, end;
    bool unknown;
  };

  void append(std::string_view token, std::vector<std::int32_t>& ids) const {
    const std::int32_t id = model_.vocabulary_.find(token);
    if (id != kNoToken) {
      ids.push_back(id);
      return;
    }
    const auto byte_id = [&](char c) { return model_.byte_ids_[static_cast<unsigned char>(c)]; };
    if (model_.byte_fallback_ &&
        std::all_of(token.begin(), token.end(), [&](char c) { return byte_id(c) != kNoToken; })) {
      for (const char c : token) ids.push_back(byte_id(c));
      return;
    }
    ids.push_back(model_.unknown());
  }

  const Unigram& model_;
  std::vector<Step> best_;
  std::vector<Token> path_;
};

std::unique_ptr<PieceEncoder> Unigram::encoder() const { return std::make_unique<UnigramEncoder>(*this); }

}  // namespace

std::unique_ptr<const Model> read_unigram(const JsonNode& node) {
  return std::make_unique<Unigram>(node, read_scores(node["vocab"]));
}

}  // namespace dstrain
