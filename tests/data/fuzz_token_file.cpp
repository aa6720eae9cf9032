// Token files: what training touches, and all that verify() reads.

#include "tests/support/fuzz.h"

#include "lib/data/token_source.h"
#include "tests/support/keep_hdf5_memory.h"
#include "tests/support/memory_files.h"

// HDF5 1.10 loses a few hundred bytes of its own when an object header is malformed; the file is refused all the same.
extern "C" const char* __lsan_default_suppressions() { return "leak:libhdf5"; }

using namespace dstrain;
using namespace dstrain::test;

namespace {

constexpr TokenFileInfo kInfo{42, 100, 0};

std::string token_file() {
  MemoryFiles files;
  TokenWriter writer(files, "d/t", kInfo, 64);
  for (int d = 0; d < 14; ++d) writer.add(std::vector<std::int32_t>(static_cast<std::size_t>(d % 7), 1 + d % 99));
  writer.finish();
  return files.get("d/t-00000.h5");
}

void read_token_file(const std::string& bytes) {
  MemoryFiles files;
  files.put("d/t.h5", bytes);
  TokenSource source(files, "d/t.h5");
  // What training touches, then everything.
  std::vector<Index> starts;
  for (Index token = 0; token < source.tokens(); token += 1 + source.tokens() / 4) {
    source.locate(token);
    starts.clear();
    const Index end = std::min(source.tokens(), token + 20);
    source.document_starts(token, end, starts);
    std::vector<std::int32_t> ids(static_cast<std::size_t>(end - token));
    source.read(token, ids);
  }
  source.file(0).verify();
}

}  // namespace

int main(int argc, char** argv) {
  keep_hdf5_memory();
  return fuzz::run(argc, argv, {token_file()}, {"HDF", "OHDR", "FRHP"}, read_token_file);
}
