#include "lib/data/tokenizer.h"

#include <algorithm>
#include <array>
#include <bit>
#include <limits>
#include <nlohmann/json.hpp>
#include <queue>
#include <set>
#include <unordered_map>

#include "lib/core/hash.h"

namespace dstrain {

namespace {

using Json = nlohmann::json;
constexpr std::int32_t kNone = std::numeric_limits<std::int32_t>::max();
constexpr std::uint64_t kMaxJson = 256ull << 20;
constexpr std::size_t kMaxVocabulary = 1u << 24;

// GPT-2's bytes_to_unicode: printable bytes stand for themselves, the others for U+0100 and on.
struct ByteAlphabet {
  std::array<std::uint16_t, 256> character{};
  std::array<std::int16_t, 512> byte{};

  ByteAlphabet() {
    byte.fill(-1);
    std::uint16_t next = 256;
    for (unsigned b = 0; b < 256; ++b) {
      const bool printable = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
      character[b] = printable ? static_cast<std::uint16_t>(b) : next++;
      byte[character[b]] = static_cast<std::int16_t>(b);
    }
  }
};

const ByteAlphabet& alphabet() {
  static const ByteAlphabet a;
  return a;
}

// The bytes that a token of tokenizer.json stands for; false when it has characters outside the alphabet.
bool unspell(const std::string& text, std::string& bytes) {
  bytes.clear();
  for (std::size_t i = 0; i < text.size();) {
    const unsigned c = static_cast<unsigned char>(text[i]);
    unsigned code = c;
    std::size_t n = 1;
    if (c >= 0x80) {
      if ((c & 0xe0u) != 0xc0 || i + 1 >= text.size()) return false;
      code = ((c & 0x1fu) << 6) | (static_cast<unsigned char>(text[i + 1]) & 0x3fu);
      n = 2;
    }
    if (code >= 512 || alphabet().byte[code] < 0) return false;
    bytes += static_cast<char>(alphabet().byte[code]);
    i += n;
  }
  return true;
}

std::uint64_t pair_key(std::int32_t left, std::int32_t right) {
  return static_cast<std::uint64_t>(static_cast<std::uint32_t>(left)) << 32 | static_cast<std::uint32_t>(right);
}

std::size_t mix(std::uint64_t key) {
  key *= 0x9E3779B97F4A7C15ull;
  return static_cast<std::size_t>(key ^ (key >> 32));
}

[[noreturn]] void refuse(const std::string& path, const std::string& key, const Json& value, const char* why) {
  std::string text = value.dump(-1, ' ', false, Json::error_handler_t::replace);
  if (text.size() > 80) text = text.substr(0, 77) + "...";
  fail(ExitCode::data, "{}: {}: {} is not supported: {}", path, key, text, why);
}

Json member(const Json& object, const char* key) { return object.is_object() ? object.value(key, Json()) : Json(); }

// Whether every key of an object is known and has one of the values listed for it.
struct Allowed {
  const char* key;
  std::vector<Json> values;  // empty: any
};
void only(const Json& object, const std::string& path, const std::string& place, const std::vector<Allowed>& allowed) {
  if (!object.is_object()) refuse(path, place, object, "expected an object");
  for (const auto& [key, value] : object.items()) {
    const auto a =
        std::find_if(allowed.begin(), allowed.end(), [&, &name = key](const Allowed& x) { return name == x.key; });
    if (a == allowed.end()) refuse(path, place + "." + key, value, "unknown key");
    if (!a->values.empty() && std::find(a->values.begin(), a->values.end(), value) == a->values.end())
      refuse(path, place + "." + key, value, "byte-level BPE has another value");
  }
}

const std::vector<Allowed>& byte_level(bool use_regex) {
  static const std::vector<Allowed> with = {
      {"type", {"ByteLevel"}}, {"add_prefix_space", {false}}, {"trim_offsets", {}}, {"use_regex", {true}}};
  static const std::vector<Allowed> without = {
      {"type", {"ByteLevel"}}, {"add_prefix_space", {false}}, {"trim_offsets", {}}, {"use_regex", {false}}};
  return use_regex ? with : without;
}

Split read_split(const Json& pre, const std::string& path) {
  if (member(pre, "type") == Json("ByteLevel")) {
    only(pre, path, "pre_tokenizer", byte_level(true));
    return Split::gpt2;
  }
  const Json parts = member(pre, "pretokenizers");
  if (member(pre, "type") != Json("Sequence") || !parts.is_array() || parts.empty())
    refuse(path, "pre_tokenizer", pre, "only ByteLevel, or a Sequence of Splits and ByteLevel");
  std::vector<std::string> patterns;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    const std::string place = format("pre_tokenizer.pretokenizers[{}]", i);
    if (i + 1 == parts.size()) {
      only(parts[i], path, place, byte_level(false));
      break;
    }
    only(parts[i], path, place,
         {{"type", {"Split"}}, {"pattern", {}}, {"behavior", {"Isolated"}}, {"invert", {false}}});
    const Json regex = member(member(parts[i], "pattern"), "Regex");
    if (!regex.is_string()) refuse(path, place + ".pattern", member(parts[i], "pattern"), "expected a Regex");
    patterns.push_back(regex.get<std::string>());
  }
  for (const Split split : {Split::llama3, Split::deepseek_v3})
    if (patterns == patterns_of(split)) return split;
  refuse(path, "pre_tokenizer", pre, "only the splits of GPT-2, Llama 3 and DeepSeek-V3 are known");
}

}  // namespace

std::string spell_bytes(std::string_view bytes) {
  std::string out;
  for (const char b : bytes) {
    const unsigned c = alphabet().character[static_cast<unsigned char>(b)];
    if (c < 0x80) {
      out += static_cast<char>(c);
    } else {
      out += static_cast<char>(0xc0u | c >> 6);
      out += static_cast<char>(0x80u | (c & 0x3fu));
    }
  }
  return out;
}

Tokenizer::Tokenizer(Split split, std::vector<std::string> tokens, std::vector<std::int32_t> special,
                     std::vector<Merge> merges, std::int32_t end_of_document)
    : split_(split),
      tokens_(std::move(tokens)),
      special_(std::move(special)),
      merges_(std::move(merges)),
      end_of_document_(end_of_document),
      byte_ids_(256, -1) {
  const std::set<std::int32_t> specials(special_.begin(), special_.end());
  check(specials.count(end_of_document_) == 1, "end of document {} is not a special token", end_of_document_);
  for (std::size_t id = 0; id < tokens_.size(); ++id)
    if (tokens_[id].size() == 1 && !specials.count(static_cast<std::int32_t>(id)))
      byte_ids_[static_cast<unsigned char>(tokens_[id][0])] = static_cast<std::int32_t>(id);
  for (int b = 0; b < 256; ++b) check(byte_ids_[static_cast<std::size_t>(b)] >= 0, "byte {} has no token", b);

  slots_.assign(std::bit_ceil(merges_.size() * 2 + 2), {0, kNone});
  const std::size_t mask = slots_.size() - 1;
  for (std::size_t rank = 0; rank < merges_.size(); ++rank) {
    const std::uint64_t key = pair_key(merges_[rank].left, merges_[rank].right);
    std::size_t i = mix(key) & mask;
    while (slots_[i].rank != kNone && slots_[i].key != key) i = (i + 1) & mask;
    slots_[i] = {key, static_cast<std::int32_t>(rank)};
  }

  Xxh3Hasher hasher;
  const auto add_text = [&](std::string_view s) {
    const std::uint64_t size = s.size();
    hasher.update(std::as_bytes(std::span(&size, 1)));
    hasher.update(std::as_bytes(std::span(s.data(), s.size())));
  };
  add_text(name_of(split_));
  for (const auto& t : tokens_) add_text(t);
  for (const auto id : special_) add_text(format("special {}", id));
  hasher.update(std::as_bytes(std::span(merges_)));
  hasher.update(std::as_bytes(std::span(&end_of_document_, 1)));
  hash_ = hasher.digest();
}

std::int32_t Tokenizer::rank_of(std::int32_t left, std::int32_t right) const {
  const std::uint64_t key = pair_key(left, right);
  const std::size_t mask = slots_.size() - 1;
  for (std::size_t i = mix(key) & mask;; i = (i + 1) & mask) {
    if (slots_[i].rank == kNone) return kNone;
    if (slots_[i].key == key) return slots_[i].rank;
  }
}

std::string Tokenizer::decode(std::span<const std::int32_t> ids) const {
  std::string out;
  for (const std::int32_t id : ids) {
    require(id >= 0 && id < vocab_size(), ExitCode::data, "token {} is outside the vocabulary of {}", id, vocab_size());
    out += tokens_[static_cast<std::size_t>(id)];
  }
  return out;
}

std::string Tokenizer::to_json() const {
  using Ordered = nlohmann::ordered_json;
  const std::set<std::int32_t> specials(special_.begin(), special_.end());
  Ordered added = Ordered::array();
  for (const auto id : special_)
    added.push_back({{"id", id},
                     {"content", tokens_[static_cast<std::size_t>(id)]},
                     {"single_word", false},
                     {"lstrip", false},
                     {"rstrip", false},
                     {"normalized", false},
                     {"special", true}});
  const auto level = [](bool use_regex) {
    return Ordered{
        {"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", use_regex}};
  };
  Ordered pre = level(true);
  if (split_ != Split::gpt2) {
    Ordered parts = Ordered::array();
    for (const auto& p : patterns_of(split_))
      parts.push_back({{"type", "Split"}, {"pattern", {{"Regex", p}}}, {"behavior", "Isolated"}, {"invert", false}});
    parts.push_back(level(false));
    pre = {{"type", "Sequence"}, {"pretokenizers", parts}};
  }
  std::string vocab = "{", merges = "[";
  const auto quoted = [](const std::string& s) { return Json(s).dump(); };
  const auto spelled = [&](std::int32_t id) {
    const auto& bytes = tokens_[static_cast<std::size_t>(id)];
    return specials.count(id) ? bytes : spell_bytes(bytes);
  };
  for (std::size_t id = 0; id < tokens_.size(); ++id)
    vocab += format("{}\n      {}: {}", id ? "," : "", quoted(spelled(static_cast<std::int32_t>(id))), id);
  for (std::size_t i = 0; i < merges_.size(); ++i)
    merges += format("{}\n      {}", i ? "," : "", quoted(spelled(merges_[i].left) + " " + spelled(merges_[i].right)));
  const Ordered head = {{"version", "1.0"},          {"truncation", nullptr}, {"padding", nullptr},
                        {"added_tokens", added},     {"normalizer", nullptr}, {"pre_tokenizer", pre},
                        {"post_processor", nullptr}, {"decoder", level(true)}};
  std::string out = head.dump(2);
  out.resize(out.rfind('\n'));  // the closing brace
  return out + R"(,
  "model": {
    "type": "BPE",
    "dropout": null,
    "unk_token": null,
    "continuing_subword_prefix": null,
    "end_of_word_suffix": null,
    "fuse_unk": false,
    "byte_fallback": false,
    "ignore_merges": false,
    "vocab": )" +
         vocab + R"(
    },
    "merges": )" +
         merges + R"(
    ]
  }
}
)";
}

Tokenizer Tokenizer::load(const Files& files, const std::string& path) {
  return parse(read_file(files, path, kMaxJson), path);
}

Tokenizer Tokenizer::parse(const std::string& text, const std::string& path) {
  Json root;
  try {
    root = Json::parse(text, [&](int depth, Json::parse_event_t, Json&) {
      require(depth <= 32, ExitCode::data, "{}: nested deeper than 32 levels", path);
      return true;
    });
  } catch (const Json::exception& e) {
    fail(ExitCode::data, "{}: not valid JSON: {}", path, e.what());
  }
  if (!root.is_object()) refuse(path, "file", Json(root.type_name()), "expected an object");
  if (!member(root, "normalizer").is_null()) refuse(path, "normalizer", root["normalizer"], "byte-level BPE has none");
  const Split split = read_split(member(root, "pre_tokenizer"), path);
  const Json decoder = member(root, "decoder");
  if (member(decoder, "type") != Json("ByteLevel")) refuse(path, "decoder", decoder, "only ByteLevel");
  const Json post = member(root, "post_processor");
  if (!post.is_null() && member(post, "type") != Json("ByteLevel"))
    refuse(path, "post_processor", post, "it would add tokens");

  const auto model = root.find("model");
  if (model == root.end()) refuse(path, "model", nullptr, "missing");
  only(*model, path, "model",
       {{"type", {"BPE"}},
        {"dropout", {nullptr, 0.0}},
        {"unk_token", {}},
        {"continuing_subword_prefix", {nullptr, ""}},
        {"end_of_word_suffix", {nullptr, ""}},
        {"fuse_unk", {false}},
        {"byte_fallback", {false}},
        {"ignore_merges", {}},
        {"vocab", {}},
        {"merges", {}}});
  const auto vocab = model->find("vocab");
  const auto merge_list = model->find("merges");
  if (vocab == model->end() || !vocab->is_object()) refuse(path, "model.vocab", nullptr, "expected an object");
  if (merge_list == model->end() || !merge_list->is_array()) refuse(path, "model.merges", nullptr, "expected a list");

  std::vector<std::pair<std::int64_t, std::string>> entries;  // id, text as in the file
  std::vector<std::int32_t> special;
  const Json added = member(root, "added_tokens");
  require(added.is_null() || added.is_array(), ExitCode::data, "{}: added_tokens: expected a list", path);
  std::unordered_map<std::string, std::int32_t> ids;
  const auto id_of = [&](const Json& value, const std::string& place) {
    if (!value.is_number_integer() || value.get<std::int64_t>() < 0 ||
        value.get<std::int64_t>() >= static_cast<std::int64_t>(kMaxVocabulary))
      refuse(path, place, value, "expected an id below 2^24");
    return static_cast<std::int32_t>(value.get<std::int64_t>());
  };
  std::size_t count = 0;
  for (const auto& [token, id] : vocab->items()) {
    const std::int32_t i = id_of(id, "model.vocab");
    ids.emplace(token, i);
    count = std::max(count, static_cast<std::size_t>(i) + 1);
  }
  std::set<std::string> special_text;
  for (const auto& a : added) {
    const Json content = member(a, "content");
    if (!content.is_string() || content.get<std::string>().empty())
      refuse(path, "added_tokens", a, "it has no content");
    const std::int32_t i = id_of(member(a, "id"), "added_tokens");
    const auto [known, fresh] = ids.emplace(content.get<std::string>(), i);
    if (known->second != i) refuse(path, "added_tokens", a, "model.vocab has another id");
    special.push_back(i);
    special_text.insert(content.get<std::string>());
    count = std::max(count, static_cast<std::size_t>(i) + 1);
  }
  require(count == ids.size(), ExitCode::data, "{}: {} tokens, but ids up to {}: every id must be used once", path,
          ids.size(), count == 0 ? 0 : count - 1);
  std::vector<std::string> tokens(count);
  std::vector<char> taken(count, 0);
  std::string bytes;
  for (const auto& [token, id] : ids) {
    if (taken[static_cast<std::size_t>(id)]++) refuse(path, "model.vocab", Json(token), "its id is used twice");
    if (special_text.count(token)) {
      tokens[static_cast<std::size_t>(id)] = token;
      continue;
    }
    if (token.empty() || !unspell(token, bytes)) refuse(path, "model.vocab", Json(token), "not spelled in bytes");
    tokens[static_cast<std::size_t>(id)] = bytes;
  }
  for (unsigned b = 0; b < 256; ++b) {
    const std::string spelled = spell_bytes(std::string(1, static_cast<char>(b)));
    if (!ids.count(spelled) || special_text.count(spelled))
      refuse(path, "model.vocab", Json(b), "no token for this byte");
  }

  std::vector<Merge> merges;
  merges.reserve(merge_list->size());
  for (const auto& m : *merge_list) {
    std::string left, right;
    if (m.is_string()) {
      const std::string both = m.get<std::string>();
      const auto space = both.find(' ');
      if (space == std::string::npos || both.find(' ', space + 1) != std::string::npos)
        refuse(path, "model.merges", m, "expected two tokens");
      left = both.substr(0, space);
      right = both.substr(space + 1);
    } else {
      if (!m.is_array() || m.size() != 2 || !m[0].is_string() || !m[1].is_string())
        refuse(path, "model.merges", m, "expected two tokens");
      left = m[0].get<std::string>();
      right = m[1].get<std::string>();
    }
    const auto l = ids.find(left), r = ids.find(right), both = ids.find(left + right);
    if (l == ids.end() || r == ids.end() || both == ids.end() || special_text.count(left) || special_text.count(right))
      refuse(path, "model.merges", m, "a part or the result is not in model.vocab");
    merges.push_back({l->second, r->second, both->second});
  }
  const auto end = ids.find(kEndOfDocument);
  std::int32_t end_of_document = -1;
  if (end != ids.end() && special_text.count(kEndOfDocument)) end_of_document = end->second;
  for (const char* name : {"<|end_of_text|>", "<\uff5cend\u2581of\u2581sentence\uff5c>"})
    if (end_of_document < 0 && special_text.count(name)) end_of_document = ids.at(name);
  require(end_of_document >= 0, ExitCode::data, "{}: added_tokens: no end-of-document token ({})", path,
          kEndOfDocument);
  return Tokenizer(split, std::move(tokens), std::move(special), std::move(merges), end_of_document);
}

// ---- encode ----

struct Encoder::State {
  struct Symbol {
    std::int32_t id, previous, next;
  };
  struct Candidate {
    std::int32_t rank, at;
    bool operator>(const Candidate& o) const { return rank != o.rank ? rank > o.rank : at > o.at; }
  };
  struct Hash {
    using is_transparent = void;
    std::size_t operator()(std::string_view s) const { return static_cast<std::size_t>(xxh3(s)); }
  };
  struct Span {
    std::uint32_t begin, count;
  };
  static constexpr std::size_t kCachedBytes = 64;         // longest piece that is remembered
  static constexpr std::size_t kCachedPieces = 1u << 18;  // then the cache starts again
  static constexpr std::size_t kShort = 32;               // up to here a scan beats the heap

  const Tokenizer& tokenizer;
  Splitter splitter;
  std::vector<std::string_view> pieces;
  std::unordered_map<std::string, Span, Hash, std::equal_to<>> cache;
  std::vector<std::int32_t> cached;
  std::vector<std::int32_t> word;
  std::vector<std::int32_t> ranks;
  std::vector<Symbol> symbols;
  std::vector<Candidate> heap;

  explicit State(const Tokenizer& t) : tokenizer(t), splitter(t.split()) {}

  // Merges `word` in place, always the lowest rank, the leftmost of equals.
  void merge_short() {
    const std::size_t size = word.size();
    ranks.assign(size, kNone);
    for (std::size_t i = 0; i + 1 < size; ++i) ranks[i] = tokenizer.rank_of(word[i], word[i + 1]);
    std::size_t n = size;
    while (n > 1) {
      const std::size_t at = static_cast<std::size_t>(
          std::min_element(ranks.begin(), ranks.begin() + static_cast<std::ptrdiff_t>(n) - 1) - ranks.begin());
      if (ranks[at] == kNone) break;
      word[at] = tokenizer.merges_[static_cast<std::size_t>(ranks[at])].result;
      for (std::size_t i = at + 1; i + 1 < n; ++i) {
        word[i] = word[i + 1];
        ranks[i] = ranks[i + 1];
      }
      --n;
      ranks[at] = at + 1 < n ? tokenizer.rank_of(word[at], word[at + 1]) : kNone;
      if (at > 0) ranks[at - 1] = tokenizer.rank_of(word[at - 1], word[at]);
    }
    word.resize(n);
  }

  void push(std::int32_t at) {
    const Symbol& s = symbols[static_cast<std::size_t>(at)];
    if (s.next < 0) return;
    const std::int32_t rank = tokenizer.rank_of(s.id, symbols[static_cast<std::size_t>(s.next)].id);
    if (rank == kNone) return;
    heap.push_back({rank, at});
    std::push_heap(heap.begin(), heap.end(), std::greater<>());
  }

  void merge_long() {
    const std::int32_t n = static_cast<std::int32_t>(word.size());
    symbols.resize(word.size());
    heap.clear();
    for (std::int32_t i = 0; i < n; ++i)
      symbols[static_cast<std::size_t>(i)] = {word[static_cast<std::size_t>(i)], i - 1, i + 1 < n ? i + 1 : -1};
    for (std::int32_t i = 0; i < n; ++i) push(i);
    while (!heap.empty()) {
      std::pop_heap(heap.begin(), heap.end(), std::greater<>());
      const Candidate c = heap.back();
      heap.pop_back();
      Symbol& s = symbols[static_cast<std::size_t>(c.at)];
      const Merge& m = tokenizer.merges_[static_cast<std::size_t>(c.rank)];
      if (s.id != m.left || s.next < 0 || symbols[static_cast<std::size_t>(s.next)].id != m.right)
        continue;  // outdated
      Symbol& gone = symbols[static_cast<std::size_t>(s.next)];
      s.id = m.result;
      s.next = gone.next;
      gone.id = -1;
      if (s.next >= 0) symbols[static_cast<std::size_t>(s.next)].previous = c.at;
      push(c.at);
      if (s.previous >= 0) push(s.previous);
    }
    word.clear();
    for (std::int32_t i = 0; i >= 0; i = symbols[static_cast<std::size_t>(i)].next)
      word.push_back(symbols[static_cast<std::size_t>(i)].id);
  }

  void encode_piece(std::string_view piece, std::vector<std::int32_t>& ids) {
    // A piece past 2^30 bytes is cut, so that positions fit.
    constexpr std::size_t kCut = 1u << 30;
    for (; piece.size() > kCut; piece.remove_prefix(kCut)) encode_piece(piece.substr(0, kCut), ids);
    word.resize(piece.size());
    for (std::size_t i = 0; i < piece.size(); ++i) word[i] = tokenizer.byte_ids_[static_cast<unsigned char>(piece[i])];
    if (word.size() <= kShort)
      merge_short();
    else
      merge_long();
    ids.insert(ids.end(), word.begin(), word.end());
  }
};

Encoder::Encoder(const Tokenizer& tokenizer) : state_(std::make_unique<State>(tokenizer)) {}
Encoder::~Encoder() = default;
Encoder::Encoder(Encoder&&) noexcept = default;

void Encoder::encode(std::string_view text, std::vector<std::int32_t>& ids) {
  State& s = *state_;
  s.splitter.split(text, s.pieces);
  for (const std::string_view piece : s.pieces) {
    if (piece.size() > State::kCachedBytes) {
      s.encode_piece(piece, ids);
      continue;
    }
    if (const auto hit = s.cache.find(piece); hit != s.cache.end()) {
      const auto begin = s.cached.begin() + hit->second.begin;
      ids.insert(ids.end(), begin, begin + hit->second.count);
      continue;
    }
    const std::size_t before = ids.size();
    s.encode_piece(piece, ids);
    if (s.cache.size() >= State::kCachedPieces) {
      s.cache.clear();
      s.cached.clear();
    }
    s.cache.emplace(std::string(piece), State::Span{static_cast<std::uint32_t>(s.cached.size()),
                                                    static_cast<std::uint32_t>(ids.size() - before)});
    s.cached.insert(s.cached.end(), ids.begin() + static_cast<std::ptrdiff_t>(before), ids.end());
  }
}

}  // namespace dstrain
