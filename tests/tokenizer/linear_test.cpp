// No text makes a tokenizer quadratic.

#include <ctime>

#include "lib/tokenizer/bpe_trainer.h"
#include "lib/tokenizer/tokenizer.h"
#include "tests/support/catch.h"
#include "tests/tokenizer/small_tokenizers.h"

using namespace dstrain;

namespace {

// `part` again and again.
std::string repeat(const std::string& part, std::size_t size) {
  std::string out;
  while (out.size() < size) out += part;
  return out;
}

// Letters that differ, so that merges have work.
std::string letters(std::size_t size) {
  std::string out;
  for (std::uint32_t x = 1; out.size() < size; x = x * 1664525u + 1013904223u)
    out += static_cast<char>('a' + (x >> 24) % 4);
  return out;
}

// Seconds of this processor that encoding takes, the least of three.
double seconds(const Tokenizer& tokenizer, const std::string& text) {
  double least = 1e9;
  for (int i = 0; i < 3; ++i) {
    Encoder encoder(tokenizer);
    std::vector<std::int32_t> ids;
    const std::clock_t begin = std::clock();
    encoder.encode(text, ids, {.special_tokens = true});
    tokenizer.decode(ids);
    least = std::min(least, static_cast<double>(std::clock() - begin) / CLOCKS_PER_SEC);
  }
  return least;
}

}  // namespace

TEST_CASE("twice the text takes about twice the time") {
  constexpr std::size_t kSize = 1u << 16;
  const std::vector<std::string> hostile = {"a",
                                            "ab",
                                            " ",
                                            "\n",
                                            " \n",
                                            "'",
                                            "'s",
                                            "=",
                                            "1",
                                            "</s>",
                                            "<",
                                            "the",
                                            "e\xcc\x81",
                                            "\xcc\x81\xcc\xa3\xcd\x85",
                                            "\xe6\x97\xa5",
                                            "\xe1\x84\x80\xe1\x85\xa1",
                                            "\xff",
                                            "\xf0\x9f\x91\xa8\xe2\x80\x8d",
                                            "_",
                                            "\xe2\x96\x81",
                                            "##",
                                            std::string(1, '\0')};
  std::vector<Tokenizer> tokenizers;
  for (const std::string& json : small_tokenizers()) tokenizers.push_back(Tokenizer::parse(json, "t.json"));
  for (const Split split : kSplits) {
    BpeTrainer trainer(split);
    trainer.add("the theme of the thesis is theirs " + letters(2000));
    tokenizers.push_back(trainer.train(400));
  }
  for (std::size_t t = 0; t < tokenizers.size(); ++t) {
    for (std::size_t h = 0; h <= hostile.size(); ++h) {
      const auto text = [&](std::size_t size) { return h < hostile.size() ? repeat(hostile[h], size) : letters(size); };
      INFO("tokenizer " << t << ", text " << h);
      // Sixteen times for four would be quadratic. Caches of the processor, and logarithms, take some.
      CHECK(seconds(tokenizers[t], text(4 * kSize)) < 8 * seconds(tokenizers[t], text(kSize)) + 0.02);
    }
  }
}
