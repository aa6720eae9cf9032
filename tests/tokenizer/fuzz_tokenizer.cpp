// Mutated tokenizer.json files, and mutated texts for what they read. An input is a file, a zero byte, and a text.
#include <string>

#include "lib/tokenizer/tokenizer.h"
#include "tests/support/fuzz.h"
#include "tests/tokenizer/small_tokenizers.h"

using namespace dstrain;

namespace {

void subject(const std::string& input) {
  const auto cut = input.find('\0');
  const Tokenizer tokenizer = Tokenizer::parse(input.substr(0, cut), "fuzz.json");
  const std::string text = cut == std::string::npos ? "" : input.substr(cut + 1);
  // A tokenizer that is taken survives its own file, and its ids decode.
  check(Tokenizer::parse(tokenizer.to_json(), "again.json").hash() == tokenizer.hash(), "another hash");
  Encoder encoder(tokenizer);
  for (const bool special : {false, true}) {
    std::vector<std::int32_t> ids;
    encoder.encode(text, ids, {.special_tokens = special, .template_tokens = special});
    tokenizer.decode(ids);
  }
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<std::string> inputs;
  for (const std::string& f : small_tokenizers())
    inputs.push_back(f + '\0' +
                     "the theme </s> ab aab 12 \xe6\x97\xa5\xe6\x9c\xac \xff\xc3 e\xcc\x81  THE a'll !?\n\n");
  return fuzz::run(argc, argv, inputs,
                   {"\"type\":",
                    "null",
                    "true",
                    "{",
                    "}",
                    "[",
                    "]",
                    ",",
                    "\"Regex\":",
                    "\"String\":",
                    "\\\\p{L}",
                    "(?=",
                    "\\\\b",
                    "*",
                    "+",
                    "{1,3}",
                    "\"ByteLevel\"",
                    "\"Isolated\"",
                    "\"Removed\"",
                    "\"NFD\"",
                    "\"Metaspace\"",
                    "\"Sequence\"",
                    "<0x0A>",
                    "\xef\xbf\xbd",
                    "\\u0000",
                    "\"\"",
                    std::string(1, '\0'),
                    "\xcc\x81",
                    "\xe1\x85\xa1",
                    "</s>",
                    "the"},
                   subject);
}
