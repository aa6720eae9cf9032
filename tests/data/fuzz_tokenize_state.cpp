// The state and the statistics of a tokenize. The first byte of an input says which.

#include "tests/support/fuzz.h"

#include "lib/data/tokenize_state.h"
#include "tests/support/keep_hdf5_memory.h"
#include "tests/support/memory_files.h"

using namespace dstrain;
using namespace dstrain::test;

namespace {

constexpr TokenFileInfo kInfo{42, 100, 0};

std::string token_file() {
  MemoryFiles files;
  TokenWriter writer(files, "d/t", kInfo, 1000);
  for (int d = 0; d < 40; ++d) writer.add(std::vector<std::int32_t>(static_cast<std::size_t>(d % 7), 1 + d % 99));
  writer.finish();
  return files.get("d/t-00000.h5");
}

const TokenizeOptions kOptions{.texts = {{"d/a.txt", 10, false}, {"d/b.jsonl", 20, true}}, .out = "o/x"};

std::string state() {
  MemoryFiles files;
  TokenizeState state(files, kOptions, kInfo);
  return files.get("o/x.state.json");
}

// With a finished file, so that the state counts.
void read_state(const std::string& bytes) {
  MemoryFiles files;
  static const std::string tokens = token_file();
  files.put("o/x-00000.h5", tokens);
  files.put("o/x.state.json", bytes);
  TokenizeState(files, kOptions, kInfo).finished("o/x");
}

std::string statistics() {
  MemoryFiles files;
  const TokenizeState state(files, kOptions, kInfo);
  TokenizeStatistics s;
  s.train.files = {"o/x-00000.h5"};
  for (Index n : {1, 5, 900, 70000}) s.train.count(n);
  s.eval = s.train;
  state.write_statistics(s);
  return files.get("o/x.json");
}

void read_statistics(const std::string& bytes) {
  MemoryFiles files;
  files.put("o/x.state.json", state());
  files.put("o/x.json", bytes);
  TokenizeState(files, kOptions, kInfo).read_statistics();
}

void read_either(const std::string& input) {
  if (input.empty()) return;
  (input[0] % 2 == 0 ? read_state : read_statistics)(input.substr(1));
}

}  // namespace

int main(int argc, char** argv) {
  keep_hdf5_memory();
  const auto of = [](char kind, const std::string& bytes) { return kind + bytes; };
  return fuzz::run(argc, argv, {of(0, state()), of(1, statistics())},
                   {"\"inputs\"", ":", "{", "}", "[", "]", ",", "\"", "\\u", "-", "null", "true", "1e400"},
                   read_either);
}
