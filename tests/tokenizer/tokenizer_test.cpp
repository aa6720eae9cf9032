#include "lib/tokenizer/tokenizer.h"

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <random>

#include "lib/tokenizer/bpe.h"
#include "lib/tokenizer/bpe_trainer.h"
#include "lib/tokenizer/byte_alphabet.h"
#include "lib/tokenizer/utf8.h"
#include "tests/support/catch.h"

using namespace dstrain;

namespace {

std::string golden(const std::string& name) {
  return read_file(system_files(), std::string(DSTRAIN_SOURCE_DIR "/tests/golden/") + name);
}

Tokenizer trained(Split split = Split::gpt2, Index vocab_size = 700) {
  BpeTrainer trainer(split);
  trainer.add(golden("tokenizer_corpus.txt"));
  return trainer.train(vocab_size);
}

std::vector<std::int32_t> encode(const Tokenizer& tokenizer, std::string_view text) {
  std::vector<std::int32_t> ids;
  Encoder(tokenizer).encode(text, ids);
  return ids;
}

const std::vector<Merge>& merges_of(const Tokenizer& t) { return dynamic_cast<const Bpe&>(t.model()).merges(); }

// BPE as its definition says: of all neighbours the lowest rank, the leftmost of equals, until there is none.
struct SlowBpe {
  std::map<std::pair<std::int32_t, std::int32_t>, std::pair<std::size_t, std::int32_t>> ranks;
  std::map<std::string, std::int32_t> bytes;

  explicit SlowBpe(const Tokenizer& t) {
    const auto& merges = merges_of(t);
    for (std::size_t i = 0; i < merges.size(); ++i) ranks[{merges[i].left, merges[i].right}] = {i, merges[i].result};
    std::string token;
    for (std::int32_t i = 1; i < t.vocab_size(); ++i)
      if (unspell_bytes(t.token(i), token)) bytes[token] = i;
  }
  std::vector<std::int32_t> encode(std::string_view piece) const {
    std::vector<std::int32_t> ids;
    for (const char c : piece) ids.push_back(bytes.at(std::string(1, c)));
    while (true) {
      std::size_t best = SIZE_MAX, at = 0;
      std::int32_t result = -1;
      for (std::size_t i = 0; i + 1 < ids.size(); ++i) {
        const auto r = ranks.find({ids[i], ids[i + 1]});
        if (r == ranks.end() || r->second.first >= best) continue;
        best = r->second.first;
        result = r->second.second;
        at = i;
      }
      if (best == SIZE_MAX) return ids;
      ids[at] = result;
      ids.erase(ids.begin() + static_cast<std::ptrdiff_t>(at) + 1);
    }
  }
};

std::string random_bytes(std::mt19937_64& random, std::size_t size) {
  // Bytes of every value, and runs of text, space and broken UTF-8.
  static const std::string kParts[] = {" ",
                                       "\n",
                                       "\t",
                                       "a",
                                       "the",
                                       "1234",
                                       "=",
                                       "\xc3\xa9",
                                       "\xe6\x97\xa5",
                                       "\xf0\x9f\x99\x82",
                                       "\xff",
                                       "\xc3",
                                       "\xed\xa0\x80",
                                       "\xf4\x90\x80\x80",
                                       "\xe0\x80\x80",
                                       std::string(1, '\0'),
                                       "'s"};
  std::string out;
  while (out.size() < size) {
    if (random() % 4 == 0) {
      out += static_cast<char>(random());
      continue;
    }
    const std::string& part = kParts[random() % std::size(kParts)];
    for (std::size_t n = 1 + random() % (random() % 10 ? 3 : 60); n > 0; --n) out += part;
  }
  return out;
}

}  // namespace

TEST_CASE("merges and ids equal those of PyPI tokenizers, for every split") {
  const auto oracle = nlohmann::json::parse(golden("tokenizer_oracle.json"));
  const std::string corpus = golden("tokenizer_corpus.txt");
  std::size_t cut = 0;  // 6000 characters
  for (int characters = 0; characters < 6000; ++characters) do
      ++cut;
    while ((static_cast<unsigned char>(corpus[cut]) & 0xc0u) == 0x80);
  for (const Split split : {Split::gpt2, Split::llama3, Split::deepseek_v3}) {
    INFO(name_of(split));
    const auto& expected = oracle.at(name_of(split));
    const Tokenizer t = trained(split);
    CHECK(t.vocab_size() == 700);
    std::vector<std::string> merges;
    for (const Merge& m : merges_of(t)) merges.push_back(t.token(m.left) + " " + t.token(m.right));
    CHECK(merges == expected.at("merges").get<std::vector<std::string>>());
    CHECK(encode(t, std::string_view(corpus).substr(0, cut)) == expected.at("ids").get<std::vector<std::int32_t>>());
  }
}

TEST_CASE("every byte string decodes to itself, and its pieces are the text") {
  std::mt19937_64 random(11);
  for (const Split split : kSplits) {
    const Tokenizer t = trained(split);
    const SlowBpe reference(t);
    Encoder encoder(t);
    std::vector<std::int32_t> ids;
    std::vector<std::size_t> ends;
    for (int i = 0; i < 300; ++i) {
      const std::string text = random_bytes(random, random() % 400);
      ids.clear();
      encoder.encode(text, ids);
      REQUIRE(t.decode(ids) == text);
      // Valid text piece by piece; a run of other bytes is a piece of its own.
      std::vector<std::int32_t> slow;
      const auto add = [&](std::string_view piece) {
        const auto part = reference.encode(piece);
        slow.insert(slow.end(), part.begin(), part.end());
      };
      for (std::string_view rest = text; !rest.empty();) {
        const std::size_t good = utf8::valid_prefix(rest);
        ends.clear();
        append_pieces(split, rest, 0, good, ends);
        std::size_t begin = 0;
        for (const std::size_t end : ends) {
          REQUIRE(end > begin);
          add(rest.substr(begin, end - begin));
          begin = end;
        }
        REQUIRE(begin == good);
        rest.remove_prefix(good);
        std::size_t bad = 0;
        while (bad < rest.size() && utf8::valid_prefix(rest.substr(bad, 4)) == 0) ++bad;
        if (bad > 0) add(rest.substr(0, bad));
        rest.remove_prefix(bad);
      }
      REQUIRE(ids == slow);
    }
    CHECK(encode(t, "").empty());
  }
}

TEST_CASE("text that looks like a special token stays text") {
  const Tokenizer t = trained();
  CHECK(t.end_of_document() == 0);
  CHECK(t.token(0) == kEndOfDocument);
  const auto ids = encode(t, "a<|endoftext|>b");
  CHECK(std::count(ids.begin(), ids.end(), 0) == 0);
  CHECK(t.decode(ids) == "a<|endoftext|>b");
  CHECK(t.decode(std::vector<std::int32_t>{0}) == "<|endoftext|>");
  CHECK_THROWS_WITH(t.decode(std::vector<std::int32_t>{700}), "token 700 is outside the vocabulary of 700");
  CHECK_THROWS_WITH(t.decode(std::vector<std::int32_t>{-1}), "token -1 is outside the vocabulary of 700");
}

TEST_CASE("a tokenizer survives its file; its hash follows what it does, not how the file is laid out") {
  for (const Split split : kSplits) {
    const Tokenizer t = trained(split);
    const std::string json = t.to_json();
    const Tokenizer again = Tokenizer::parse(json, "t.json");
    CHECK(again.hash() == t.hash());
    CHECK(again.to_json() == json);
    auto root = nlohmann::ordered_json::parse(json);
    CHECK(Tokenizer::parse(root.dump(), "t.json").hash() == t.hash());
    // The older spelling of merges, as texts, and defaults that are left out.
    for (auto& m : root["model"]["merges"]) m = m[0].get<std::string>() + " " + m[1].get<std::string>();
    root["model"].erase("ignore_merges");
    CHECK(Tokenizer::parse(root.dump(), "t.json").hash() == t.hash());
    std::swap(root["model"]["merges"][0], root["model"]["merges"][1]);
    CHECK(Tokenizer::parse(root.dump(), "t.json").hash() != t.hash());
  }
  CHECK(trained(Split::gpt2).hash() != trained(Split::gpt2, 699).hash());
}

TEST_CASE("long pieces take time in proportion") {
  // Each would take hours if anything were quadratic in it.
  const Tokenizer t = trained(Split::llama3);
  std::string newline_free(1 << 20, ' ');
  std::mt19937_64 random(5);
  std::string letters;
  for (int i = 0; i < (1 << 20); ++i) letters += static_cast<char>('a' + random() % 26);
  for (const std::string& text : {std::string(1 << 20, 'a'), newline_free, letters, std::string(1 << 20, '\xff'),
                                  std::string(1 << 20, '='), std::string(1 << 20, '\n')}) {
    const auto ids = encode(t, text);
    CHECK(t.decode(ids) == text);
    BpeTrainer trainer(Split::gpt2);
    trainer.add(text);
    CHECK(trainer.train(400).vocab_size() <= 400);
  }
}

TEST_CASE("threads do not change what is trained") {
  const std::vector<std::string> documents(20, golden("tokenizer_corpus.txt") + std::string(3, '\xff'));
  // One document that is cut for the threads, in many places: words that are there once each show a wrong cut.
  std::string long_one;
  for (int i = 0; long_one.size() < (8u << 20); ++i)
    long_one += "Word" + std::string(1 + i % 40, static_cast<char>('a' + i % 26)) + "'ll\n x  y";
  const std::vector<std::string> one = {long_one + " end of it"};
  for (const Split split : kSplits) {
    BpeTrainer plain(split), whole(split);
    for (const auto& d : documents) plain.add(d);
    whole.add(one[0]);
    const std::string expected = plain.train(500).to_json(), expected_of_one = whole.train(3000).to_json();
    for (const int threads : {1, 3}) {
      ThreadPool pool(threads);
      BpeTrainer trainer(split), large(split);
      trainer.add(documents, pool);
      CHECK(trainer.train(500).to_json() == expected);
      large.add(one, pool);
      CHECK(large.train(3000).to_json() == expected_of_one);
    }
  }
}

TEST_CASE("training stops when there is nothing left to merge") {
  BpeTrainer trainer(Split::gpt2);
  trainer.add("ab ab");
  const Tokenizer t = trainer.train(1000);
  // "ab" twice and " ab" once: a b, then space and ab.
  REQUIRE(t.vocab_size() == 259);
  CHECK(t.token(257) == "ab");
  CHECK(t.token(258) ==
        "\u0120"
        "ab");
  BpeTrainer often(Split::gpt2);
  often.add("ab ab");
  CHECK(often.train(1000, 2).vocab_size() == 258);
}
