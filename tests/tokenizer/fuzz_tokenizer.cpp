// Mutated tokenizer.json files, and mutated texts for what they read. An input is a file, a zero byte, and a text.
#include <map>
#include <string>

#include "lib/tokenizer/tokenizer.h"
#include "tests/support/fuzz.h"
#include "tests/tokenizer/small_tokenizers.h"

using namespace dstrain;

namespace {

// A tokenizer that is taken survives its own file.
Tokenizer parse(const std::string& file) {
  Tokenizer tokenizer = Tokenizer::parse(file, "fuzz.json");
  check(Tokenizer::parse(tokenizer.to_json(), "again.json").hash() == tokenizer.hash(), "another hash");
  return tokenizer;
}

// Ids decode.
void encode(const Tokenizer& tokenizer, const std::string& text) {
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
  std::map<std::string, Tokenizer> good;  // half of the inputs have one of these files, and only the text is another
  for (const std::string& f : small_tokenizers()) {
    good.emplace(f, parse(f));
    inputs.push_back(f + '\0' +
                     "the theme </s> ab aab 12 \xe6\x97\xa5\xe6\x9c\xac \xff\xc3 e\xcc\x81  THE a'll !?\n\n");
  }
  const auto subject = [&](const std::string& input) {
    const std::size_t cut = std::min(input.find('\0'), input.size());
    const std::string file = input.substr(0, cut), text = input.substr(std::min(cut + 1, input.size()));
    const auto known = good.find(file);
    encode(known == good.end() ? parse(file) : known->second, text);
  };
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
