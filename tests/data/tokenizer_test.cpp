#include "lib/data/tokenizer.h"

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <random>

#include "lib/data/bpe_trainer.h"
#include "tests/data/temporary.h"
#include "tests/support/catch.h"

using namespace dstrain;

namespace {

constexpr Split kSplits[] = {Split::gpt2, Split::llama3, Split::deepseek_v3};

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

// BPE as its definition says: of all neighbours the lowest rank, the leftmost of equals, until there is none.
struct SlowBpe {
  std::map<std::pair<std::int32_t, std::int32_t>, std::pair<std::size_t, std::int32_t>> ranks;
  std::map<std::string, std::int32_t> bytes;

  explicit SlowBpe(const Tokenizer& t) {
    for (std::size_t i = 0; i < t.merges().size(); ++i)
      ranks[{t.merges()[i].left, t.merges()[i].right}] = {i, t.merges()[i].result};
    for (std::size_t i = 1; i < t.tokens().size(); ++i) bytes[t.tokens()[i]] = static_cast<std::int32_t>(i);
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
  for (const Split split : kSplits) {
    INFO(name_of(split));
    const auto& expected = oracle.at(name_of(split));
    const Tokenizer t = trained(split);
    CHECK(t.vocab_size() == 700);
    std::vector<std::string> merges;
    for (const Merge& m : t.merges())
      merges.push_back(spell_bytes(t.tokens()[static_cast<std::size_t>(m.left)]) + " " +
                       spell_bytes(t.tokens()[static_cast<std::size_t>(m.right)]));
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
    Splitter splitter(split);
    std::vector<std::int32_t> ids;
    std::vector<std::string_view> pieces;
    for (int i = 0; i < 300; ++i) {
      const std::string text = random_bytes(random, random() % 400);
      ids.clear();
      encoder.encode(text, ids);
      REQUIRE(t.decode(ids) == text);
      splitter.split(text, pieces);
      std::string joined;
      std::vector<std::int32_t> slow;
      for (const auto piece : pieces) {
        joined += piece;
        const auto part = reference.encode(piece);
        slow.insert(slow.end(), part.begin(), part.end());
      }
      REQUIRE(joined == text);
      REQUIRE(ids == slow);
    }
    CHECK(encode(t, "").empty());
  }
}

TEST_CASE("text that looks like a special token stays text") {
  const Tokenizer t = trained();
  CHECK(t.end_of_document() == 0);
  CHECK(t.tokens()[0] == kEndOfDocument);
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
    CHECK(again.split() == split);
    CHECK(again.tokens() == t.tokens());
    CHECK(again.to_json() == json);
    auto root = nlohmann::ordered_json::parse(json);
    CHECK(Tokenizer::parse(root.dump(), "t.json").hash() == t.hash());
    // The newer spelling of merges, as pairs.
    for (auto& m : root["model"]["merges"]) {
      const std::string both = m;
      m = {both.substr(0, both.find(' ')), both.substr(both.find(' ') + 1)};
    }
    CHECK(Tokenizer::parse(root.dump(), "t.json").hash() == t.hash());
    std::swap(root["model"]["merges"][0], root["model"]["merges"][1]);
    CHECK(Tokenizer::parse(root.dump(), "t.json").hash() != t.hash());
  }
  CHECK(trained(Split::gpt2).hash() != trained(Split::gpt2, 699).hash());
}

TEST_CASE("what is not byte-level BPE is refused by name") {
  const auto good = nlohmann::ordered_json::parse(trained(Split::llama3, 300).to_json());
  const auto report = [](const nlohmann::ordered_json& j) -> std::string {
    try {
      Tokenizer::parse(j.dump(), "t.json");
      return "";
    } catch (const Error& e) {
      CHECK(e.code() == ExitCode::data);
      return e.what();
    }
  };
  CHECK(report(good) == "");
  struct Case {
    const char* pointer;
    nlohmann::ordered_json value;
    const char* start;
  };
  const Case cases[] = {
      {"/model/type", "WordPiece", "t.json: model.type: \"WordPiece\" is not supported"},
      {"/model/byte_fallback", true, "t.json: model.byte_fallback: true is not supported"},
      {"/model/dropout", 0.1, "t.json: model.dropout: 0.1 is not supported"},
      {"/model/continuing_subword_prefix", "##", "t.json: model.continuing_subword_prefix: \"##\" is not supported"},
      {"/model/other", 1, "t.json: model.other: 1 is not supported: unknown key"},
      {"/model/merges/0", "a", "t.json: model.merges: \"a\" is not supported: expected two tokens"},
      {"/model/merges/0", "a zzzzzz", "t.json: model.merges: \"a zzzzzz\" is not supported"},
      {"/model/merges/0", 5, "t.json: model.merges: 5 is not supported"},
      {"/model/vocab/a", 5, "t.json: model.vocab: "},
      {"/model/vocab/a", -1, "t.json: model.vocab: -1 is not supported: expected an id below 2^24"},
      {"/model/vocab/a", "x", "t.json: model.vocab: \"x\" is not supported"},
      {"/model/vocab/extra", 400, "t.json: 301 tokens, but ids up to 400: every id must be used once"},
      {"/model/vocab/\xe6\x97\xa5", 300,
       "t.json: model.vocab: \"\xe6\x97\xa5\" is not supported: not spelled in bytes"},
      {"/normalizer", {{"type", "NFC"}}, "t.json: normalizer: {\"type\":\"NFC\"} is not supported"},
      {"/decoder/type", "WordPiece", "t.json: decoder: "},
      {"/post_processor", {{"type", "TemplateProcessing"}}, "t.json: post_processor: "},
      {"/pre_tokenizer", {{"type", "Whitespace"}}, "t.json: pre_tokenizer: {\"type\":\"Whitespace\"} is not supported"},
      {"/pre_tokenizer/pretokenizers/0/behavior", "Removed",
       "t.json: pre_tokenizer.pretokenizers[0].behavior: \"Removed\" is not supported"},
      {"/pre_tokenizer/pretokenizers/0/pattern/Regex", "x+", "t.json: pre_tokenizer: "},
      {"/added_tokens", nlohmann::ordered_json::array(), "t.json: added_tokens: no end-of-document token"},
      {"/added_tokens/0/id", 7, "t.json: added_tokens: "},
  };
  for (const Case& c : cases) {
    auto broken = good;
    broken[nlohmann::ordered_json::json_pointer(c.pointer)] = c.value;
    INFO(c.pointer);
    CHECK(report(broken).substr(0, std::string(c.start).size()) == c.start);
  }
  auto no_byte = good;
  no_byte["model"]["vocab"].erase("a");
  CHECK(report(no_byte) != "");
  CHECK_THROWS_AS(Tokenizer::parse("{", "t.json"), Error);
  CHECK_THROWS_AS(Tokenizer::parse("[]", "t.json"), Error);
  CHECK_THROWS_AS(Tokenizer::parse(std::string(100, '['), "t.json"), Error);
  CHECK_THROWS_AS(Tokenizer::load(system_files(), "/nonexistent"), Error);
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

TEST_CASE("training stops when there is nothing left to merge") {
  BpeTrainer trainer(Split::gpt2);
  trainer.add("ab ab");
  const Tokenizer t = trainer.train(1000);
  // "ab" twice and " ab" once: a b, then space and ab.
  REQUIRE(t.vocab_size() == 259);
  CHECK(t.tokens()[257] == "ab");
  CHECK(t.tokens()[258] == " ab");
  BpeTrainer often(Split::gpt2);
  often.add("ab ab");
  CHECK(often.train(1000, 2).vocab_size() == 258);
}
