#pragma once
// A small fuzzer: seeded mutations of good inputs, a number of them or until a time is up. For executables made by
// dstrain_fuzz() of tests/CMakeLists.txt, which build their subject with the address and undefined-behaviour
// sanitizers. In the preset fuzz the subject also tells which ways it took (GCC's trace-pc): an input that took a new
// one is kept and changed further, as AFL does; a seed's run stays the same from one process to the next.
//
//   int main(int argc, char** argv) {
//     return dstrain::fuzz::run(argc, argv, {good inputs}, {words}, [](const std::string& input) { ... });
//   }
//
//   fuzz_NAME RUNS [SEED]        so many inputs; exit 0
//   fuzz_NAME SECONDSs [SEED]    until the time is up: 60s
//   fuzz_NAME FILE               runs one input again
//
// The subject may throw Error with a code that data may cause (data, checkpoint, usage); any other exception, a crash,
// a sanitizer's report, an input that takes more than a second of processor time, or a peak of memory above 512 MB (the
// sanitizer's own included) is a failure. The input of a failure is left in FUZZ_NAME.input in the working directory.

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <fstream>
#include <functional>
#include <iterator>
#include <random>
#include <string>
#include <vector>

#include "lib/core/errors.h"

namespace dstrain::fuzz {

using Random = std::mt19937_64;

// Freed memory that is kept to find its use counts as memory; an input frees less than a megabyte. Allocations have no
// stacks but the caller of malloc, and pages are not given back, which makes inputs cheap: of a failure
// ASAN_OPTIONS=malloc_context_size=30 fuzz_NAME FILE tells who allocated.
extern "C" __attribute__((used)) const char* __asan_default_options() {
  return "quarantine_size_mb=1:thread_local_quarantine_size_kb=64:malloc_context_size=2:"
         "allocator_release_to_os_interval_ms=-1";
}
extern "C" __attribute__((weak)) void __sanitizer_set_death_callback(void (*callback)());  // null without sanitizers

// What runs, for whoever finds it dead.
struct Current {
  std::string name;
  std::string input;
  static Current& get() {
    static Current current;
    return current;
  }
  static void keep() { std::ofstream(get().name + ".input", std::ios::binary) << get().input; }
};

// Which ways the subject took: pairs of basic blocks, each with how often in powers of two. Of the thread that runs it.
struct Ways {
  static constexpr std::size_t kPlaces = 1 << 16;
  std::uint8_t counts[kPlaces], seen[kPlaces];  // of this input; a bit a power, of all inputs
  std::uint32_t touched[kPlaces];
  std::size_t n;
  std::uintptr_t before;

  // Whether this input took one that none before took; forgets its counts.
  bool any_new() {
    bool result = false;
    for (std::size_t i = 0; i < n; ++i) {
      std::uint8_t& count = counts[touched[i]];
      const auto bit = static_cast<std::uint8_t>(1u << (7 - __builtin_clz(count | 1u) % 8));
      if ((seen[touched[i]] & bit) == 0) result = true;
      seen[touched[i]] |= bit;
      count = 0;
    }
    n = before = 0;
    return result;
  }
};
inline constinit Ways ways{};
inline constinit thread_local bool recording = false;

// Called in every basic block of what is built with -fsanitize-coverage=trace-pc. Addresses count from this function,
// wherever the program was loaded.
extern "C" __attribute__((used, no_sanitize_coverage, no_sanitize("address", "undefined"))) void
__sanitizer_cov_trace_pc() {
  if (!recording) return;
  const std::uintptr_t here = (reinterpret_cast<std::uintptr_t>(__builtin_return_address(0)) -
                               reinterpret_cast<std::uintptr_t>(&__sanitizer_cov_trace_pc)) *
                                  0x9e3779b97f4a7c15ull >>
                              40;
  const std::size_t at = (here ^ ways.before) % Ways::kPlaces;
  ways.before = here >> 1;
  if (ways.counts[at] == 0) ways.touched[ways.n++] = static_cast<std::uint32_t>(at);
  if (ways.counts[at] != 255) ++ways.counts[at];
}

inline std::size_t below(Random& random, std::size_t n) { return static_cast<std::size_t>(random() % n); }

// One change: a byte replaced, a bit flipped, bytes cut, doubled, moved, a number made extreme, a word put in, or a
// part of another input.
inline void mutate(std::string& text, const std::string& other, const std::vector<std::string>& words, Random& random) {
  const std::size_t at = below(random, text.size() + 1);
  const std::size_t length = std::min(text.size() - at, below(random, 1 + (random() % 8 ? 8u : 300u)));
  switch (random() % 11) {
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
    case 8: {  // a line moved
      const auto begin = text.rfind('\n', at), end = text.find('\n', at);
      if (begin == std::string::npos || end == std::string::npos) break;
      const std::string line = text.substr(begin, end - begin);
      text.erase(begin, end - begin);
      text.insert(below(random, text.size() + 1), line);
      break;
    }
    case 9:
      if (!words.empty()) text.replace(at, length, words[below(random, words.size())]);
      break;
    default:
      if (!words.empty()) text.insert(at, words[below(random, words.size())]);
      break;
  }
}

constexpr std::size_t kMostKept = 10000;

// Runs the fuzzer; returns the exit code of main. `inputs` are good ones, at least one; `words` are what inputs are
// made of.
inline int run(int argc, char** argv, const std::vector<std::string>& inputs, const std::vector<std::string>& words,
               const std::function<void(const std::string&)>& subject) {
  const std::string self = argv[0];
  const std::string name = self.substr(self.find_last_of('/') + 1);
  std::string refusal;
  Current::get().name = name;
  if (__sanitizer_set_death_callback) __sanitizer_set_death_callback(Current::keep);
  for (const int signal : {SIGALRM, SIGABRT, SIGTERM})
    std::signal(signal, [](int number) {
      Current::keep();
      std::signal(number, SIG_DFL);
      std::raise(number);
    });
  std::clock_t slowest = 0;
  const auto once = [&](const std::string& input) {
    Current::get().input = input;
    alarm(60);  // a hang ends with SIGALRM
    const std::clock_t begin = std::clock();
    recording = true;
    const auto end = [&] {
      recording = false;
      alarm(0);
      slowest = std::max(slowest, std::clock() - begin);
    };
    try {
      subject(input);
      end();
      return true;
    } catch (const Error& e) {
      end();
      refusal = e.what();
      if (e.code() == ExitCode::data || e.code() == ExitCode::checkpoint || e.code() == ExitCode::usage) return false;
      throw;
    }
  };
  if (argc < 2) {
    std::fprintf(stderr, "%s RUNS [SEED] | SECONDSs [SEED] | FILE\n", name.c_str());
    return 2;
  }
  char* end = nullptr;
  const double most = std::strtod(argv[1], &end);
  const bool timed = std::string(end) == "s";
  if (*end != '\0' && !timed) {
    std::ifstream file(argv[1], std::ios::binary);
    once(std::string(std::istreambuf_iterator<char>(file), {}));
    return 0;
  }
  Random random(argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 1);
  const auto begin = std::chrono::steady_clock::now();
  const auto seconds = [&] { return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count(); };
  std::uint64_t runs = 0, taken = 0;
  std::vector<std::string> kept = inputs;  // those that took a new way behind the good ones
  std::size_t longest = 4096;
  for (const std::string& good : inputs) {
    if (!once(good)) {
      std::fprintf(stderr, "%s: a good input is refused: %s\n", name.c_str(), refusal.c_str());
      return 1;
    }
    ways.any_new();
    longest = std::max(longest, 2 * good.size());
  }
  const auto failed = [&](const char* why, double figure) {
    Current::keep();
    std::fprintf(stderr, "%s: %s: %.3f; see %s.input\n", name.c_str(), why, figure, name.c_str());
    return 1;
  };
  for (; timed ? seconds() < most : static_cast<double>(runs) < most; ++runs) {
    std::string input = kept[below(random, random() % 4 ? kept.size() : inputs.size())];
    // Half of the time, only what lies behind a zero byte: the part that a good first part leads to.
    std::string head;
    if (const auto zero = input.find('\0'); zero != std::string::npos && random() % 2 == 0) {
      head = input.substr(0, zero + 1);
      input.erase(0, zero + 1);
    }
    for (std::size_t n = 1 + below(random, random() % 4 ? 2u : 12u); n > 0; --n)
      mutate(input, kept[below(random, kept.size())], words, random);
    input.insert(0, head);
    try {
      taken += once(input);
    } catch (const std::exception& e) {
      Current::keep();
      std::fprintf(stderr, "%s: %s; see %s.input\n", name.c_str(), e.what(), name.c_str());
      return 1;
    }
    if (ways.any_new() && input.size() <= longest) {
      if (kept.size() < kMostKept)
        kept.push_back(input);
      else
        kept[inputs.size() + below(random, kept.size() - inputs.size())] = input;
    }
    if (slowest > CLOCKS_PER_SEC) return failed("seconds of an input", static_cast<double>(slowest) / CLOCKS_PER_SEC);
  }
  rusage used{};
  getrusage(RUSAGE_SELF, &used);
  const double megabytes = static_cast<double>(used.ru_maxrss) / 1024;
  std::printf("%s: %llu inputs in %.0f s, %llu of them taken, %zu kept; slowest %.3f s, memory %.0f MB\n", name.c_str(),
              static_cast<unsigned long long>(runs), seconds(), static_cast<unsigned long long>(taken),
              kept.size() - inputs.size(), static_cast<double>(slowest) / CLOCKS_PER_SEC, megabytes);
  if (megabytes > 512) return failed("megabytes of memory", megabytes);
  return 0;
}

}  // namespace dstrain::fuzz
