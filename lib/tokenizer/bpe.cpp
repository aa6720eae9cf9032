#include "lib/tokenizer/bpe.h"

#include <algorithm>
#include <bit>

#include "lib/core/errors.h"
#include "lib/tokenizer/byte_alphabet.h"
#include "lib/tokenizer/utf8.h"

namespace dstrain {

namespace {

std::size_t mix(std::uint64_t key) {
  key *= 0x9E3779B97F4A7C15ull;
  return static_cast<std::size_t>(key ^ (key >> 32));
}

std::uint64_t pair_key(std::int32_t left, std::int32_t right) {
  return static_cast<std::uint64_t>(static_cast<std::uint32_t>(left)) << 32 | static_cast<std::uint32_t>(right);
}

// An empty prefix or suffix is none, but is written as it was read.
bool given(const std::optional<std::string>& affix) { return affix && !affix->empty(); }

std::optional<std::string> optional_text(const JsonNode& node) {
  return node.is_null() ? std::nullopt : std::optional(node.text());
}

}  // namespace

Bpe::Bpe(const JsonNode& node, bool bytes)
    : place_(node.place()), vocabulary_(Vocabulary::from_object(node["vocab"])), bytes_(bytes) {
  node.only({"type", "dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk",
             "byte_fallback", "ignore_merges", "vocab", "merges"});
  if (!node["dropout"].is_null() && !(node["dropout"].value().is_number() && node["dropout"].real() == 0))
    node["dropout"].refuse("is not supported: ids would be random");
  unknown_ = optional_text(node["unk_token"]);
  prefix_ = optional_text(node["continuing_subword_prefix"]);
  suffix_ = optional_text(node["end_of_word_suffix"]);
  fuse_unknown_ = node["fuse_unk"].flag(false);
  byte_fallback_ = node["byte_fallback"].flag(false);
  ignore_merges_ = node["ignore_merges"].flag(false);
  read_merges(node["merges"]);

  for (std::size_t id = 0; id < vocabulary_.size(); ++id) {
    const std::string& token = vocabulary_.tokens()[id];
    if (token.empty()) continue;
    if (const auto c = utf8::decode(token, 0); c.size == token.size())
      characters_.emplace(c.code, static_cast<std::int32_t>(id));
  }
  all_bytes_ = bytes_ && !given(prefix_) && !given(suffix_);
  for (unsigned b = 0; b < 256; ++b) {
    constexpr const char* kDigits = "0123456789ABCDEF";
    fallback_ids_[b] = vocabulary_.find(std::string("<0x") + kDigits[b >> 4] + kDigits[b & 15] + ">");
    byte_ids_[b] = vocabulary_.find(spell_bytes(std::string(1, static_cast<char>(b))));
    all_bytes_ = all_bytes_ && byte_ids_[b] != kNoToken;
  }
}

void Bpe::read_merges(const JsonNode& node) {
  node.array();
  if (node.size() > kMaxVocabulary * 4)
    fail(ExitCode::data, "{}: {} merges; at most {} are read", node.place(), node.size(), kMaxVocabulary * 4);
  slots_.assign(std::bit_ceil(node.size() * 2 + 2), {0, kNoRank, 0});
  const std::size_t mask = slots_.size() - 1;
  const std::size_t cut = prefix_ ? prefix_->size() : 0;
  std::vector<Merge> all;
  for (std::size_t i = 0; i < node.size(); ++i) {
    const Json& m = node.value()[i];
    std::string left, right;
    if (m.is_string()) {
      const auto& both = m.get_ref<const std::string&>();
      if (both.starts_with("#version")) continue;
      const auto space = both.find(' ');
      if (space == std::string::npos || both.find(' ', space + 1) != std::string::npos)
        node[i].refuse("expected two tokens");
      left = both.substr(0, space);
      right = both.substr(space + 1);
    } else {
      if (!m.is_array() || m.size() != 2 || !m[0].is_string() || !m[1].is_string())
        node[i].refuse("expected two tokens");
      left = m[0].get<std::string>();
      right = m[1].get<std::string>();
    }
    if (right.size() < cut) node[i].refuse("the second part is shorter than continuing_subword_prefix");
    const std::int32_t l = vocabulary_.find(left), r = vocabulary_.find(right);
    const std::int32_t result = vocabulary_.find(left + right.substr(cut));
    if (l == kNoToken || r == kNoToken || result == kNoToken)
      node[i].refuse("a part or the result is not in model.vocab");
    all.push_back({l, r, result});
  }
  // A pair that is there twice has its last rank.
  for (std::size_t rank = 0; rank < all.size(); ++rank) {
    const std::uint64_t key = pair_key(all[rank].left, all[rank].right);
    std::size_t i = mix(key) & mask;
    while (slots_[i].rank != kNoRank && slots_[i].key != key) i = (i + 1) & mask;
    if (slots_[i].rank != kNoRank) all[static_cast<std::size_t>(slots_[i].rank)].result = kNoToken;
    slots_[i] = {key, static_cast<std::int32_t>(rank), all[rank].result};
  }
  for (const Merge& m : all)
    if (m.result != kNoToken) merges_.push_back(m);
}

const Bpe::Slot& Bpe::find(std::int32_t left, std::int32_t right) const {
  const std::uint64_t key = pair_key(left, right);
  const std::size_t mask = slots_.size() - 1;
  for (std::size_t i = mix(key) & mask;; i = (i + 1) & mask)
    if (slots_[i].rank == kNoRank || slots_[i].key == key) return slots_[i];
}

std::int32_t Bpe::unknown() const {
  const std::int32_t id = vocabulary_.find(*unknown_);
  require(id != kNoToken, ExitCode::data, "{}.unk_token: '{}' is not in the vocabulary, and the text needs it", place_,
          *unknown_);
  return id;
}

void Bpe::start(std::string_view piece, std::vector<std::int32_t>& ids) const {
  if (!bytes_) return start_characters(piece, ids);
  if (!all_bytes_) return start_characters(spell_bytes(piece), ids);
  for (const char c : piece) ids.push_back(byte_ids_[static_cast<unsigned char>(c)]);
}

void Bpe::start_characters(std::string_view piece, std::vector<std::int32_t>& ids) const {
  bool pending = false;  // an unknown token that is not yet written
  std::string spelled;
  for (std::size_t i = 0; i < piece.size();) {
    const auto [code, size] = utf8::decode(piece, i);
    std::string_view text = piece.substr(i, size);
    std::int32_t id = kNoToken;
    const bool first = i == 0, last = i + size == piece.size();
    i += size;
    if ((!first && given(prefix_)) || (last && given(suffix_))) {
      spelled.clear();
      if (!first && prefix_) spelled += *prefix_;
      spelled += text;
      if (last && suffix_) spelled += *suffix_;
      text = spelled;
      id = vocabulary_.find(text);
    } else if (const auto found = characters_.find(code); found != characters_.end()) {
      id = found->second;
    }
    if (id != kNoToken) {
      if (pending) ids.push_back(unknown());
      pending = false;
      ids.push_back(id);
      continue;
    }
    if (byte_fallback_ && std::all_of(text.begin(), text.end(), [&](char c) {
          return fallback_ids_[static_cast<unsigned char>(c)] != kNoToken;
        })) {
      for (const char c : text) ids.push_back(fallback_ids_[static_cast<unsigned char>(c)]);
      continue;
    }
    // Without an unknown token the character is lost, as in the reference.
    if (!unknown_) continue;
    const std::int32_t unknown_id = unknown();
    if (pending && !fuse_unknown_) ids.push_back(unknown_id);
    pending = true;
  }
  if (pending) ids.push_back(unknown());
}

void Bpe::append_json(std::string& out) const {
  const auto text_or_null = [](const std::optional<std::string>& s) {
    return s ? OrderedJson(*s) : OrderedJson(nullptr);
  };
  const OrderedJson head = {{"type", "BPE"},
                            {"dropout", nullptr},
                            {"unk_token", text_or_null(unknown_)},
                            {"continuing_subword_prefix", text_or_null(prefix_)},
                            {"end_of_word_suffix", text_or_null(suffix_)},
                            {"fuse_unk", fuse_unknown_},
                            {"byte_fallback", byte_fallback_},
                            {"ignore_merges", ignore_merges_}};
  const std::string text = head.dump();
  out.append(text, 0, text.size() - 1);
  out += ",\"vocab\":";
  append_vocabulary(vocabulary_, out);
  out += ",\"merges\":[";
  for (std::size_t i = 0; i < merges_.size(); ++i) {
    out += i > 0 ? ",[" : "[";
    append_quoted(vocabulary_.token(merges_[i].left), out);
    out += ',';
    append_quoted(vocabulary_.token(merges_[i].right), out);
    out += ']';
  }
  out += "]}";
}

// Merges with one thread's memory.
class BpeEncoder final : public PieceEncoder {
 public:
  explicit BpeEncoder(const Bpe& model) : model_(model) {}

  void encode(std::string_view piece, std::vector<std::int32_t>& ids) override {
    if (model_.ignore_merges_) {
      if (model_.bytes_) {
        spelled_.clear();
        spell_bytes(piece, spelled_);
      }
      const std::int32_t whole = model_.vocabulary_.find(model_.bytes_ ? std::string_view(spelled_) : piece);
      if (whole != kNoToken) {
        ids.push_back(whole);
        return;
      }
    }
    word_.clear();
    model_.start(piece, word_);
    if (word_.size() <= kShort)
      merge_short();
    else
      merge_long();
    ids.insert(ids.end(), word_.begin(), word_.end());
  }

 private:
  static constexpr std::size_t kShort = 32;  // up to here a scan beats the heap
  struct Symbol {
    std::int32_t id, previous, next;
  };
  struct Candidate {
    std::int32_t rank, at, left, right, result;
    bool operator>(const Candidate& o) const { return rank != o.rank ? rank > o.rank : at > o.at; }
  };

  // Merges word_ in place, always the lowest rank, the leftmost of equals.
  void merge_short() {
    std::size_t n = word_.size();
    if (n < 2) return;
    std::int32_t ranks[kShort], results[kShort];
    const auto rate = [&](std::size_t i) {
      const Bpe::Slot& s = model_.find(word_[i], word_[i + 1]);
      ranks[i] = s.rank;
      results[i] = s.result;
    };
    for (std::size_t i = 0; i + 1 < n; ++i) rate(i);
    while (n > 1) {
      std::size_t at = 0;
      for (std::size_t i = 1; i + 1 < n; ++i)
        if (ranks[i] < ranks[at]) at = i;
      if (ranks[at] == Bpe::kNoRank) break;
      word_[at] = results[at];
      for (std::size_t i = at + 1; i + 1 < n; ++i) {
        word_[i] = word_[i + 1];
        ranks[i] = ranks[i + 1];
        results[i] = results[i + 1];
      }
      --n;
      if (at + 1 < n) rate(at);
      if (at > 0) rate(at - 1);
    }
    word_.resize(n);
  }

  void push(std::int32_t at) {
    const Symbol& s = symbols_[static_cast<std::size_t>(at)];
    if (s.next < 0) return;
    const std::int32_t right = symbols_[static_cast<std::size_t>(s.next)].id;
    const Bpe::Slot& slot = model_.find(s.id, right);
    if (slot.rank == Bpe::kNoRank) return;
    heap_.push_back({slot.rank, at, s.id, right, slot.result});
    std::push_heap(heap_.begin(), heap_.end(), std::greater<>());
  }

  void merge_long() {
    check(word_.size() < INT32_MAX, "a piece of {} symbols", word_.size());
    const auto n = static_cast<std::int32_t>(word_.size());
    symbols_.resize(word_.size());
    heap_.clear();
    for (std::int32_t i = 0; i < n; ++i)
      symbols_[static_cast<std::size_t>(i)] = {word_[static_cast<std::size_t>(i)], i - 1, i + 1 < n ? i + 1 : -1};
    for (std::int32_t i = 0; i < n; ++i) push(i);
    while (!heap_.empty()) {
      std::pop_heap(heap_.begin(), heap_.end(), std::greater<>());
      const Candidate c = heap_.back();
      heap_.pop_back();
      Symbol& s = symbols_[static_cast<std::size_t>(c.at)];
      if (s.id != c.left || s.next < 0 || symbols_[static_cast<std::size_t>(s.next)].id != c.right)
        continue;  // outdated
      Symbol& gone = symbols_[static_cast<std::size_t>(s.next)];
      s.id = c.result;
      s.next = gone.next;
      gone.id = kNoToken;
      if (s.next >= 0) symbols_[static_cast<std::size_t>(s.next)].previous = c.at;
      push(c.at);
      if (s.previous >= 0) push(s.previous);
    }
    word_.clear();
    for (std::int32_t i = 0; i >= 0; i = symbols_[static_cast<std::size_t>(i)].next)
      word_.push_back(symbols_[static_cast<std::size_t>(i)].id);
  }

  const Bpe& model_;
  std::string spelled_;
  std::vector<std::int32_t> word_;
  std::vector<Symbol> symbols_;
  std::vector<Candidate> heap_;
};

std::unique_ptr<PieceEncoder> Bpe::encoder() const { return std::make_unique<BpeEncoder>(*this); }

std::unique_ptr<const Model> read_bpe(const JsonNode& node, bool bytes) { return std::make_unique<Bpe>(node, bytes); }

}  // namespace dstrain
