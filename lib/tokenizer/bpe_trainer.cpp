#include "lib/tokenizer/bpe_trainer.h"

#include <algorithm>
#include <atomic>
#include <numeric>
#include <queue>

#include "lib/core/errors.h"
#include "lib/tokenizer/byte_alphabet.h"

namespace dstrain {

namespace {

using Position = std::uint32_t;  // of a symbol in all words, one after another
constexpr Position kNowhere = 0xffffffffu;

struct Pair {
  std::int32_t left, right;
  bool operator==(const Pair&) const = default;
  auto operator<=>(const Pair&) const = default;
};
struct PairHash {
  std::size_t operator()(const Pair& p) const {
    const std::uint64_t key =
        (static_cast<std::uint64_t>(static_cast<std::uint32_t>(p.left)) << 32 | static_cast<std::uint32_t>(p.right)) *
        0x9E3779B97F4A7C15ull;
    return static_cast<std::size_t>(key ^ (key >> 32));
  }
};

// What is known of a pair. A queue entry stands for the places that one merge made (or the first count found); nearly
// always a pair has one entry, more only when two merges make the same token. Such entries come up one after another.
struct PairInfo {
  std::int64_t count = 0;
  std::vector<std::vector<Position>> places;  // one list an entry; emptied when the entry is used up
};

struct Entry {
  std::int64_t count;
  Pair pair;
  std::uint32_t list;
  // The queue's top is the highest count, of equals the lowest pair.
  bool operator<(const Entry& o) const { return count != o.count ? count < o.count : pair > o.pair; }
};

struct Words {
  std::vector<std::int32_t> symbol;  // -1: merged into the one before
  std::vector<Position> previous, next;
  std::vector<std::uint32_t> word;
  std::vector<std::int64_t> count;  // of a word
};

}  // namespace

namespace {

// A place at or behind `at` where every split cuts, whatever lies around: between a letter and a space that a letter
// follows. text.size() when there is none.
std::size_t safe_cut(std::string_view text, std::size_t at) {
  const auto letter = [&](std::size_t i) {
    return (text[i] >= 'a' && text[i] <= 'z') || (text[i] >= 'A' && text[i] <= 'Z');
  };
  for (at = std::max<std::size_t>(at, 1); at + 1 < text.size(); ++at)
    if (text[at] == ' ' && letter(at - 1) && letter(at + 1)) return at;
  return text.size();
}

}  // namespace

void BpeTrainer::add(std::span<const std::string> documents, ThreadPool& pool) {
  constexpr std::size_t kPart = 1u << 18;
  std::vector<std::string_view> parts;
  for (std::string_view rest : documents)
    while (!rest.empty()) {
      const std::size_t cut = rest.size() < 2 * kPart ? rest.size() : safe_cut(rest, kPart);
      parts.push_back(rest.substr(0, cut));
      rest.remove_prefix(cut);
    }
  const auto threads = static_cast<std::size_t>(pool.threads());
  while (counters_.size() < threads) counters_.emplace_back(split_);
  std::atomic<std::size_t> next = 0;
  pool.parallel_for(pool.threads(), [&](std::int64_t t) {
    for (std::size_t i; (i = next++) < parts.size();) counters_[static_cast<std::size_t>(t)].add_text(parts[i]);
  });
}

Tokenizer BpeTrainer::train(Index vocab_size, std::int64_t min_frequency) const {
  check(vocab_size >= 257, "vocab_size {}", vocab_size);

  // Ids: the special token, then the bytes in the order of the characters that spell them.
  std::vector<std::string> tokens = {kEndOfDocument};
  std::vector<int> bytes(256);
  std::iota(bytes.begin(), bytes.end(), 0);
  const auto spelled = [](int b) { return spell_bytes(std::string(1, static_cast<char>(b))); };
  std::sort(bytes.begin(), bytes.end(), [&](int a, int b) { return spelled(a) < spelled(b); });
  std::vector<std::int32_t> byte_ids(256);
  for (const int b : bytes) {
    byte_ids[static_cast<std::size_t>(b)] = static_cast<std::int32_t>(tokens.size());
    tokens.emplace_back(1, static_cast<char>(b));
  }

  // Sorted, so that nothing depends on the order of a hash table.
  PieceCounter counter = counters_[0];
  for (std::size_t i = 1; i < counters_.size(); ++i)
    counters_[i].for_each([&](std::string_view piece, std::int64_t count) { counter.add(piece, count); });
  std::vector<std::pair<std::string_view, std::int64_t>> pieces;
  counter.for_each([&](std::string_view piece, std::int64_t count) { pieces.emplace_back(piece, count); });
  std::sort(pieces.begin(), pieces.end());
  std::size_t total = 0;
  for (const auto& [piece, count] : pieces) total += piece.size();
  require(total < kNowhere, ExitCode::data, "{} bytes of distinct pieces; at most {} can be trained on", total,
          kNowhere);
  Words words;
  words.symbol.reserve(total);
  words.previous.reserve(total);
  words.next.reserve(total);
  words.word.reserve(total);
  for (const auto& [piece, count] : pieces) {
    for (std::size_t i = 0; i < piece.size(); ++i) {
      const Position at = static_cast<Position>(words.symbol.size());
      words.symbol.push_back(byte_ids[static_cast<unsigned char>(piece[i])]);
      words.previous.push_back(i == 0 ? kNowhere : at - 1);
      words.next.push_back(i + 1 == piece.size() ? kNowhere : at + 1);
      words.word.push_back(static_cast<std::uint32_t>(words.count.size()));
    }
    words.count.push_back(count);
  }

  std::unordered_map<Pair, PairInfo, PairHash> pairs;
  for (Position at = 0; at < total; ++at) {
    if (words.next[at] == kNowhere) continue;
    PairInfo& info = pairs[{words.symbol[at], words.symbol[words.next[at]]}];
    info.count += words.count[words.word[at]];
    if (info.places.empty()) info.places.emplace_back();
    info.places[0].push_back(at);
  }
  std::priority_queue<Entry> queue;
  for (const auto& [pair, info] : pairs)
    if (info.count > 0) queue.push({info.count, pair, 0});

  std::unordered_map<std::string, std::int32_t> id_of;
  for (std::size_t id = 0; id < tokens.size(); ++id) id_of.emplace(tokens[id], static_cast<std::int32_t>(id));
  std::vector<Merge> merges;
  std::unordered_map<Pair, std::size_t, PairHash> merge_at;
  std::unordered_map<Pair, std::vector<Position>, PairHash> fresh;  // places of pairs that this merge made

  while (static_cast<Index>(tokens.size()) < vocab_size && !queue.empty()) {
    Entry top = queue.top();
    queue.pop();
    PairInfo& info = pairs[top.pair];
    if (top.count != info.count) {
      if (info.count > 0) {
        top.count = info.count;
        queue.push(top);
      }
      continue;
    }
    if (top.count < 1 || top.count < min_frequency) break;

    const std::string text =
        tokens[static_cast<std::size_t>(top.pair.left)] + tokens[static_cast<std::size_t>(top.pair.right)];
    const auto [known, is_new] = id_of.emplace(text, static_cast<std::int32_t>(tokens.size()));
    const std::int32_t id = known->second;
    if (is_new) tokens.push_back(text);
    // The same pair can come up again (see PairInfo); its last place in the list counts, as in the reference.
    if (const auto before = merge_at.find(top.pair); before != merge_at.end()) merges[before->second].result = -1;
    merge_at[top.pair] = merges.size();
    merges.push_back({top.pair.left, top.pair.right, id});

    std::vector<Position> places = std::move(info.places[top.list]);
    info.places[top.list].clear();
    std::sort(places.begin(), places.end());

    fresh.clear();
    const auto gone = [&](std::int32_t left, std::int32_t right, std::int64_t count) {
      pairs[{left, right}].count -= count;
    };
    const auto made = [&](Position at, std::int64_t count) {
      const Pair pair{words.symbol[at], words.symbol[words.next[at]]};
      pairs[pair].count += count;
      fresh[pair].push_back(at);
    };
    for (const Position at : places) {
      const Position second = words.next[at];
      if (words.symbol[at] != top.pair.left || second == kNowhere || words.symbol[second] != top.pair.right) continue;
      const std::int64_t count = words.count[words.word[at]];
      const Position before = words.previous[at], after = words.next[second];
      if (before != kNowhere) gone(words.symbol[before], top.pair.left, count);
      if (after != kNowhere) gone(top.pair.right, words.symbol[after], count);
      words.symbol[at] = id;
      words.symbol[second] = -1;
      words.next[at] = after;
      if (after != kNowhere) words.previous[after] = at;
      if (before != kNowhere) made(before, count);
      if (after != kNowhere) made(at, count);
    }
    for (auto& [pair, list] : fresh) {
      PairInfo& i = pairs[pair];
      if (i.count <= 0) continue;
      i.places.push_back(std::move(list));
      queue.push({i.count, pair, static_cast<std::uint32_t>(i.places.size() - 1)});
    }
  }
  std::erase_if(merges, [](const Merge& m) { return m.result < 0; });
  return Tokenizer::byte_level(split_, tokens, merges);
}

}  // namespace dstrain
