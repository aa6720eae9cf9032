#pragma once
// A small fuzzer: seeded mutations of good inputs until a time is up. For executables made by dstrain_fuzz() of
// tests/CMakeLists.txt, which build their subject with the address and undefined-behaviour sanitizers.
//
//   int main(int argc, char** argv) {
//     return dstrain::fuzz::run(argc, argv, {good inputs}, {words}, [](const std::string& input) { ... });
//   }
//
//   fuzz_NAME SECONDS [SEED]     runs until the time is up; exit 0
//   fuzz_NAME FILE               runs one input again
//
// The subject may throw Error with a code that data may cause (data, checkpoint, usage); any other exception, a crash,
// a sanitizer's report, or an input that takes longer than a minute is a failure. The input of a failure is left in
// FUZZ_NAME.input in the working directory: it is written before each run.

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <iterator>
#include <random>
#include <string>
#include <vector>

#include "lib/core/errors.h"

namespace dstrain::fuzz {

using Random = std::mt19937_64;

inline std::size_t below(Random& random, std::size_t n) { return static_cast<std::size_t>(random() % n); }

// One change: a byte replaced, a bit flipped, bytes cut, doubled, moved, a number made extreme, a word put in, or a
// part of another input.
inline void mutate(std::string& text, const std::string& other, const std::vector<std::string>& words, Random& random) {
  const std::size_t at = below(random, text.size() + 1);
  const std::size_t length = std::min(text.size() - at, below(random, 1 + (random() % 8 ? 8u : 300u)));
  switch (random() % 10) {
    case 0:
      if (at < text.size()) text[at] = static_cast<char>(random());
      break;
    case 1:
      if (at < text.size()) text[at] = static_cast<char>(text[at] ^ (1 << (random() % 8)));
      break;
    case 2:
      text.erase(at, length);
      break;
    case 3:
      text.insert(at, text.substr(at, length));
      break;
    case 4: {
      const std::string part = text.substr(at, length);
      text.erase(at, length);
      text.insert(below(random, text.size() + 1), part);
      break;
    }
    case 5: {  // eight bytes of an extreme number
      static constexpr std::uint64_t kNumbers[] = {0, 1, ~0ull, 1ull << 63, (1ull << 63) - 1, 1ull << 31, 1ull << 32};
      const std::uint64_t value = kNumbers[below(random, std::size(kNumbers))];
      for (std::size_t i = 0; i < 8 && at + i < text.size(); ++i) text[at + i] = static_cast<char>(value >> (8 * i));
      break;
    }
    case 6: {  // digits
      static const char* const kTexts[] = {"0",     "-1", "2147483648", "9223372036854775807", "18446744073709551616",
                                           "1e999", "0.5"};
      const std::size_t digit = text.find_first_of("0123456789", at);
      if (digit == std::string::npos) break;
      const std::size_t end = std::min(text.find_first_not_of("0123456789", digit), text.size());
      text.replace(digit, end - digit, kTexts[below(random, std::size(kTexts))]);
      break;
    }
    case 7: {
      const std::size_t from = below(random, other.size() + 1);
      text.insert(at, other.substr(from, below(random, 200)));
      break;
    }
    default:
      if (!words.empty()) text.insert(at, words[below(random, words.size())]);
      break;
  }
}

// Runs the fuzzer; returns the exit code of main. `inputs` are good ones, at least one; `words` are what inputs are
// made of.
inline int run(int argc, char** argv, const std::vector<std::string>& inputs, const std::vector<std::string>& words,
               const std::function<void(const std::string&)>& subject) {
  const std::string self = argv[0];
  const std::string name = self.substr(self.find_last_of('/') + 1);
  std::string refusal;
  const auto once = [&](const std::string& input) {
    alarm(60);  // a hang ends with SIGALRM
    try {
      subject(input);
      alarm(0);
      return true;
    } catch (const Error& e) {
      alarm(0);
      refusal = e.what();
      if (e.code() == ExitCode::data || e.code() == ExitCode::checkpoint || e.code() == ExitCode::usage) return false;
      throw;
    }
  };
  if (argc < 2) {
    std::fprintf(stderr, "%s SECONDS [SEED] | FILE\n", name.c_str());
    return 2;
  }
  char* end = nullptr;
  const double seconds = std::strtod(argv[1], &end);
  if (*end != '\0') {
    std::ifstream file(argv[1], std::ios::binary);
    once(std::string(std::istreambuf_iterator<char>(file), {}));
    return 0;
  }
  Random random(argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 1);
  const auto until = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
  std::uint64_t runs = 0, taken = 0;
  for (const std::string& good : inputs)
    if (!once(good)) {
      std::fprintf(stderr, "%s: a good input is refused: %s\n", name.c_str(), refusal.c_str());
      return 1;
    }
  for (; std::chrono::steady_clock::now() < until; ++runs) {
    std::string input = inputs[below(random, inputs.size())];
    // Half of the time, only what lies behind a zero byte: the part that a good first part leads to.
    std::string head;
    if (const auto zero = input.find('\0'); zero != std::string::npos && random() % 2 == 0) {
      head = input.substr(0, zero + 1);
      input.erase(0, zero + 1);
    }
    for (std::size_t n = 1 + below(random, random() % 4 ? 2u : 12u); n > 0; --n)
      mutate(input, inputs[below(random, inputs.size())], words, random);
    input.insert(0, head);
    std::ofstream(name + ".input", std::ios::binary) << input;
    taken += once(input);
  }
  std::remove((name + ".input").c_str());
  std::printf("%s: %llu inputs in %.0f s, %llu of them taken\n", name.c_str(), static_cast<unsigned long long>(runs),
              seconds, static_cast<unsigned long long>(taken));
  return 0;
}

}  // namespace dstrain::fuzz
