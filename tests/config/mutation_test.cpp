// 100,000 mutated job files: each is accepted or refused with Error, and an accepted one survives being written out.
#include <cstdio>
#include <filesystem>
#include <random>

#include "lib/config/resolve.h"
#include "lib/config/writer.h"
#include "tests/support/catch.h"

using namespace dstrain;

namespace {

using Random = std::mt19937_64;

std::size_t below(Random& random, std::size_t n) { return static_cast<std::size_t>(random() % n); }

// One change: bytes flipped, cut, doubled, moved; or words and marks of YAML put where they do not belong.
void mutate(std::string& text, const std::string& other, Random& random) {
  static const char* const kWords[] = {"~",        "null",
                                       "yes",      "off",
                                       "0x1F",     "010",
                                       "1_000",    ".nan",
                                       "-.inf",    "1e999",
                                       "-1",       "\"",
                                       "'",        "[",
                                       "]",        "{",
                                       "}",        ",",
                                       ":",        ": ",
                                       "- ",       "? ",
                                       "&a ",      "*a",
                                       "!!int ",   "!x ",
                                       "<<: ",     "---\n",
                                       "...\n",    "%YAML 1.1\n",
                                       "|\n",      ">-\n",
                                       "#",        "\n",
                                       "\t",       "\r\n",
                                       "\x04",     "\xef\xbb\xbf",
                                       "\xff\xfe", "99999999999999999999",
                                       "true",     "0",
                                       "model:\n"};
  const std::size_t at = below(random, text.size() + 1);
  const std::size_t length = std::min(text.size() - at, below(random, 1 + (random() % 8 ? 8u : 200u)));
  switch (random() % 8) {
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
    case 4:
      text.insert(at, kWords[below(random, std::size(kWords))]);
      break;
    case 5:
      text.replace(at, length, kWords[below(random, std::size(kWords))]);
      break;
    case 6: {  // a piece of another file
      const std::size_t from = below(random, other.size());
      text.insert(at, other.substr(from, below(random, 120)));
      break;
    }
    default: {  // a line moved
      const auto begin = text.rfind('\n', at), end = text.find('\n', at);
      if (begin == std::string::npos || end == std::string::npos) break;
      const std::string line = text.substr(begin, end - begin);
      text.erase(begin, end - begin);
      text.insert(below(random, text.size() + 1), line);
    }
  }
}

}  // namespace

TEST_CASE("mutated job files crash and hang nothing") {
  std::vector<std::string> seeds;
  for (const auto& entry : std::filesystem::directory_iterator(DSTRAIN_SOURCE_DIR "/configs"))
    seeds.push_back(read_file(system_files(), entry.path().string()));
  std::sort(seeds.begin(), seeds.end());
  REQUIRE(seeds.size() >= 6);
  Random random(20261125);
  int accepted = 0, refused = 0;
  for (int i = 0; i < 100000; ++i) {
    std::string text = seeds[below(random, seeds.size())];
    const std::string& other = seeds[below(random, seeds.size())];
    for (std::size_t n = 1 + below(random, 4); n > 0; --n) mutate(text, other, random);
    std::vector<std::string> overrides;
    if (random() % 16 == 0) {
      std::string o = "optimizer.lr=1.0e-3";
      mutate(o, other, random);
      overrides.push_back(o);
    }
    try {
      const Loaded loaded = parse_config(system_files(), "job.yaml", text, overrides);
      const std::string written = to_yaml(loaded.config);
      if (to_yaml(parse_config(system_files(), "again.yaml", written, {}).config) != written) {
        UNSCOPED_INFO(text);
        FAIL("an accepted job does not read back");
      }
      resolve(loaded, 8);
      ++accepted;
    } catch (const Error& e) {
      if (e.code() != ExitCode::usage || e.what()[0] == '\0') {
        UNSCOPED_INFO(text);
        FAIL(e.what());
      }
      ++refused;
    }
  }
  // Both sides were met.
  CHECK(accepted > 1000);
  CHECK(refused > 50000);
}
