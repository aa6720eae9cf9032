// What tokenizer.json may not say: one error with its place each, never a crash, never silence.

#include <nlohmann/json.hpp>

#include "lib/tokenizer/bpe_trainer.h"
#include "lib/tokenizer/tokenizer.h"
#include "tests/support/catch.h"

using namespace dstrain;

namespace {

using Json = nlohmann::ordered_json;

std::string report(const std::string& text) {
  try {
    Tokenizer::parse(text, "t.json");
    return "";
  } catch (const Error& e) {
    CHECK(e.code() == ExitCode::data);
    return e.what();
  }
}

Json byte_level() {
  BpeTrainer trainer(Split::llama3);
  trainer.add("the theme of the thesis is theirs");
  return Json::parse(trainer.train(300).to_json());
}

Json word_piece() {
  return Json::parse(R"({"version": "1.0", "truncation": null, "padding": null,
    "added_tokens": [{"id": 1, "content": "[SEP]", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true}],
    "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null, "lowercase": true},
    "pre_tokenizer": {"type": "BertPreTokenizer"}, "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
    "post_processor": {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "[SEP]", "type_id": 0}}],
      "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
      "special_tokens": {"[SEP]": {"id": "[SEP]", "ids": [1], "tokens": ["[SEP]"]}}},
    "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100,
      "vocab": {"[UNK]": 0, "[SEP]": 1, "a": 2, "##b": 3}}})");
}

Json unigram() {
  Json j = word_piece();
  j["model"] = {{"type", "Unigram"}, {"unk_id", 0}, {"byte_fallback", false}};
  j["model"]["vocab"] = Json::parse(R"([["<unk>", 0.0], ["[SEP]", 0.0], ["a", -1.5], ["b", -2.0]])");
  return j;
}

struct Case {
  const char* pointer;
  Json value;
  const char* start;  // of the error; empty: it is taken
};

void check_cases(const Json& good, const std::vector<Case>& cases) {
  REQUIRE(report(good.dump()) == "");
  for (const Case& c : cases) {
    Json broken = good;
    broken[Json::json_pointer(c.pointer)] = c.value;
    INFO(c.pointer << " " << c.value.dump());
    CHECK(report(broken.dump()).substr(0, std::string(c.start).size()) == c.start);
    if (*c.start == '\0') CHECK(report(broken.dump()) == "");
  }
}

Json repeated(const char* key, int depth) {
  Json j = {{"type", "NFC"}};
  for (int i = 0; i < depth; ++i) j = {{"type", "Sequence"}, {key, Json::array({j})}};
  return j;
}

}  // namespace

TEST_CASE("what a tokenizer.json may not say is refused with its place") {
  check_cases(
      byte_level(),
      {
          {"/version", "2.0", "t.json: version: \"2.0\": is not supported"},
          {"/truncation", {{"max_length", 5}}, "t.json: truncation: {\"max_length\":5}: is not supported"},
          {"/padding", {{"strategy", "x"}}, "t.json: padding: "},
          {"/other", 1, "t.json: other: 1: is not supported: unknown key"},
          {"/model/type", "WordLevel", "t.json: model.type: \"WordLevel\": is not supported"},
          {"/model/type", nullptr, "t.json: model.type: null: is not supported"},
          {"/model", nullptr, "t.json: model: null: expected a model"},
          {"/model/dropout", 0.1, "t.json: model.dropout: 0.1: is not supported"},
          {"/model/fuse_unk", 1, "t.json: model.fuse_unk: 1: expected true or false"},
          {"/model/other", 1, "t.json: model.other: 1: is not supported: unknown key"},
          {"/model/merges/0", "a", "t.json: model.merges[0]: \"a\": expected two tokens"},
          {"/model/merges/0", "a b c", "t.json: model.merges[0]: \"a b c\": expected two tokens"},
          {"/model/merges/0", "a zzzzzz", "t.json: model.merges[0]: \"a zzzzzz\": a part or the result"},
          {"/model/merges/0", 5, "t.json: model.merges[0]: 5: expected two tokens"},
          {"/model/merges/0", {"a", "b", "c"}, "t.json: model.merges[0]: "},
          {"/model/merges", nullptr, "t.json: model.merges: null: expected a list"},
          {"/model/continuing_subword_prefix", "#####", "t.json: model.merges[0]: "},
          {"/model/vocab/a", 5, "t.json: model.vocab: id 5 is there twice"},
          {"/model/vocab/a", -1, "t.json: model.vocab.a: -1: expected an integer from 0"},
          {"/model/vocab/a", 9223372036854775807ull, "t.json: model.vocab.a: 9223372036854775807: expected an integer"},
          {"/model/vocab/a", 18446744073709551615ull, "t.json: model.vocab.a: 18446744073709551615: expected"},
          {"/model/vocab/a", 1e300, "t.json: model.vocab.a: 1e+300: expected an integer"},
          {"/model/vocab/a", "x", "t.json: model.vocab.a: \"x\": expected an integer"},
          {"/model/vocab/extra", 4000, "t.json: model.vocab.extra: 4000: expected an integer from 0"},
          {"/model/vocab", {1, 2}, "t.json: model.vocab: [1,2]: expected an object"},
          {"/normalizer", {{"type", "Bogus"}}, "t.json: normalizer.type: \"Bogus\": is not supported"},
          {"/normalizer", {{"type", "NFC"}, {"x", 1}}, "t.json: normalizer.x: 1: is not supported: unknown key"},
          {"/normalizer",
           {{"type", "Sequence"}, {"normalizers", {nullptr}}},
           "t.json: normalizer.normalizers[0]: null"},
          {"/normalizer",
           {{"type", "Precompiled"}, {"precompiled_charsmap", "!!"}},
           "t.json: normalizer.precompiled_charsmap: \"!!\": not base64"},
          {"/normalizer",
           {{"type", "Precompiled"}, {"precompiled_charsmap", "AAAA"}},
           "t.json: normalizer.precompiled_charsmap: \"AAAA\": too short"},
          {"/normalizer",
           {{"type", "Precompiled"}, {"precompiled_charsmap", "/////w=="}},
           "t.json: normalizer.precompiled_charsmap: \"/////w==\": its trie does not fit"},
          {"/normalizer",
           {{"type", "Replace"}, {"pattern", {{"Regex", "("}}}, {"content", ""}},
           "t.json: normalizer.pattern.Regex: not a regex: missing closing parenthesis"},
          {"/normalizer",
           {{"type", "Replace"}, {"pattern", {{"Glob", "x"}}}, {"content", ""}},
           "t.json: normalizer.pattern.Glob: \"x\": is not supported"},
          {"/normalizer", repeated("normalizers", 60), "t.json: nested deeper than 64 levels"},
          {"/normalizer", repeated("normalizers", 20), ""},
          {"/decoder/type", "CTC", "t.json: decoder.type: \"CTC\": is not supported"},
          {"/decoder",
           {{"type", "Strip"}, {"content", "ab"}, {"start", 1}, {"stop", 0}},
           "t.json: decoder.content: \"ab\": expected one character"},
          {"/decoder", {{"type", "Strip"}, {"content", "a"}, {"start", -1}, {"stop", 0}}, "t.json: decoder.start: -1"},
          {"/post_processor", {{"type", "Other"}}, "t.json: post_processor.type: \"Other\": is not supported"},
          {"/post_processor",
           {{"type", "BertProcessing"}, {"sep", {"a", 99999}}, {"cls", {"b", 0}}},
           "t.json: post_processor.sep[1]: 99999: expected an integer from 0"},
          {"/pre_tokenizer",
           {{"type", "UnicodeScripts"}},
           "t.json: pre_tokenizer.type: \"UnicodeScripts\": is not supported"},
          {"/pre_tokenizer/pretokenizers/0/behavior", "Cut",
           "t.json: pre_tokenizer.pretokenizers[0].behavior: \"Cut\""},
          {"/pre_tokenizer/pretokenizers/0/behavior", "Removed", ""},
          {"/pre_tokenizer/pretokenizers/0/invert", nullptr, "t.json: pre_tokenizer.pretokenizers[0].invert: null"},
          {"/pre_tokenizer/pretokenizers/0/pattern/Regex", "[a[b]]",
           "t.json: pre_tokenizer.pretokenizers[0].pattern.Regex: a class in a class at byte 2"},
          {"/pre_tokenizer/pretokenizers/0/pattern/Regex", "[a&&b]",
           "t.json: pre_tokenizer.pretokenizers[0].pattern.Regex: '&&' in a class"},
          {"/pre_tokenizer/pretokenizers/0/pattern/Regex", "\\p{Klingon}",
           "t.json: pre_tokenizer.pretokenizers[0].pattern.Regex: \\p{Klingon} at byte 0"},
          {"/pre_tokenizer/pretokenizers/0/pattern/Regex", "(?x)a",
           "t.json: pre_tokenizer.pretokenizers[0].pattern.Regex: (?x) at byte 0"},
          {"/pre_tokenizer/pretokenizers/0/pattern/Regex", "(?i:'ll|miSs)",
           "t.json: pre_tokenizer.pretokenizers[0].pattern.Regex: 'ss' in a group without case at byte 11"},
          {"/pre_tokenizer/pretokenizers/0/pattern/Regex", "(?i:\xc3\x9f)",
           "t.json: pre_tokenizer.pretokenizers[0].pattern.Regex: this character in a group without case at byte 4"},
          {"/pre_tokenizer/pretokenizers/0/pattern/Regex", "(?i:s(?-i:ss)|s'll\xe2\x80\x99s)", ""},
          {"/pre_tokenizer/pretokenizers/0/pattern/Regex", "\\X",
           "t.json: pre_tokenizer.pretokenizers[0].pattern.Regex: \\X"},
          {"/pre_tokenizer/pretokenizers/0/pattern/Regex", "a{99999}",
           "t.json: pre_tokenizer.pretokenizers[0].pattern.Regex: not a regex: number too big"},
          {"/pre_tokenizer/pretokenizers/0/pattern/Regex", std::string(200, '(') + std::string(200, ')'),
           "t.json: pre_tokenizer.pretokenizers[0].pattern.Regex: a group nested so deeply"},
          {"/pre_tokenizer/pretokenizers/0/pattern/Regex", std::string(100000, 'a'),
           "t.json: pre_tokenizer.pretokenizers[0].pattern.Regex: a regex of 100000 bytes"},
          {"/added_tokens", Json::array(), "t.json: added_tokens: no end-of-document token"},
          {"/added_tokens/0/id", 7, "t.json: added_tokens[0].id: 7: this token's id is 0"},
          {"/added_tokens/0/id", 1 << 30, "t.json: added_tokens[0].id: 1073741824: expected an integer"},
          {"/added_tokens/0/content", "", "t.json: added_tokens[0]: "},
          {"/added_tokens/0/content", std::string(2000, 'x'), "t.json: added_tokens[0]: "},
          {"/added_tokens/0/lstrip", nullptr, "t.json: added_tokens[0].lstrip: null: expected true or false"},
          {"/added_tokens/1", byte_level()["added_tokens"][0],
           "t.json: added_tokens[1].content: \"<|endoftext|>\": is there twice"},
      });
}

TEST_CASE("WordPiece and Unigram are refused where they are wrong") {
  check_cases(
      word_piece(),
      {
          {"/model/max_input_chars_per_word", -1, "t.json: model.max_input_chars_per_word: -1"},
          {"/model/unk_token", nullptr, "t.json: model.unk_token: null: expected text"},
          {"/model/vocab/##b", 2, "t.json: model.vocab: id 2 is there twice"},
          {"/model/vocab/##c", 4, ""},
          {"/post_processor/single/0",
           {{"Sequence", {{"id", "B"}, {"type_id", 0}}}},
           "t.json: post_processor.single[0].Sequence.id: \"B\": expected A"},
          {"/post_processor/single", Json::array(), "t.json: post_processor.single: []: is not supported"},
          {"/post_processor/special_tokens/[SEP]/ids/0", 77, "t.json: post_processor.special_tokens.[SEP].ids[0]: 77"},
          {"/post_processor/special_tokens", Json::object(),
           "t.json: post_processor.single[1].SpecialToken.id: \"[SEP]\": is not in"},
      });
  check_cases(unigram(), {
                             {"/model/unk_id", 4, "t.json: model.unk_id: 4: expected an integer from 0 to 3"},
                             {"/model/unk_id", nullptr, ""},
                             {"/model/vocab/0", "x", "t.json: model.vocab[0]: \"x\": expected a token and its score"},
                             {"/model/vocab/0/1", "x", "t.json: model.vocab[0][1]: \"x\": expected a number"},
                             {"/model/vocab/0/0", std::string(2000, 'x'), "t.json: model.vocab[0]: "},
                         });
}

TEST_CASE("a zero byte in a token is a character like others") {
  Json j = word_piece();
  j["model"]["vocab"][std::string("##\0b", 4)] = 4;
  std::vector<std::int32_t> ids;
  const Tokenizer t = Tokenizer::parse(j.dump(), "t.json");
  CHECK(t.vocab_size() == 5);
  j["normalizer"] = nullptr;
  Encoder(Tokenizer::parse(j.dump(), "t.json")).encode(std::string_view("a\0b", 3), ids);
  CHECK(ids == std::vector<std::int32_t>{2, 4});
  CHECK(report(t.to_json()) == "");
}

TEST_CASE("files that are not JSON, or only nearly, are refused") {
  CHECK(report("{").substr(0, 16) == "t.json: not JSON");
  CHECK(report("").substr(0, 16) == "t.json: not JSON");
  CHECK(report("[]") == "t.json: expected an object");
  CHECK(report(std::string(1000000, '[')) == "t.json: nested deeper than 64 levels");
  CHECK(report("{\"version\": \"1.0\", \"version\": \"1.0\"}") == "t.json: the key 'version' is there twice");
  CHECK(report("{\"model\": \"\xff\"}").substr(0, 16) == "t.json: not JSON");
  CHECK(report("{\"model\": \"\\ud800\"}").substr(0, 16) == "t.json: not JSON");
  const std::string good = byte_level().dump();
  for (std::size_t size = 0; size < good.size(); size += 37) CHECK(report(good.substr(0, size)) != "");
  CHECK_THROWS_AS(Tokenizer::load(system_files(), "/nonexistent"), Error);
}

TEST_CASE("a text without ids, and a regex that explodes, are errors with their place") {
  const auto encode = [](const Json& j, const std::string& text) -> std::string {
    std::vector<std::int32_t> ids;
    try {
      Encoder(Tokenizer::parse(j.dump(), "t.json")).encode(text, ids);
      return "";
    } catch (const Error& e) {
      CHECK(e.code() == ExitCode::data);
      return e.what();
    }
  };
  Json j = word_piece();
  j["model"]["unk_token"] = "nowhere";
  CHECK(encode(j, "ab") == "");
  CHECK(encode(j, "x") == "t.json: model.unk_token: 'nowhere' is not in the vocabulary, and a word needs it");
  j = unigram();
  j["model"]["unk_id"] = nullptr;
  CHECK(encode(j, "ab") == "");
  CHECK(encode(j, "x") == "t.json: model.unk_id: null, and the text has what no token covers");
  j = byte_level();
  j["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "(?:a|a)*b|c";
  CHECK(encode(j, std::string(60, 'a')).substr(0, 74) ==
        "t.json: pre_tokenizer.pretokenizers[0].pattern.Regex: the regex explodes a");
  // Quadratic: every start runs to the end.
  j["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "(?:a|b)+(?=c)";
  CHECK(encode(j, std::string(1000, 'a')) == "");
  CHECK(encode(j, std::string(1u << 18, 'a')).substr(0, 73) ==
        "t.json: pre_tokenizer.pretokenizers[0].pattern.Regex: the regex explodes:");
  // One start alone takes too many steps.
  CHECK(encode(j, std::string(1u << 22, 'a')).substr(0, 74) ==
        "t.json: pre_tokenizer.pretokenizers[0].pattern.Regex: the regex explodes a");
}
