// Token files of llm.c and Megatron. The first byte of an input says whose: 0 is llm.c, others Megatron.

#include "tests/support/fuzz.h"

#include "lib/data/foreign.h"
#include "tests/support/keep_hdf5_memory.h"
#include "tests/support/memory_files.h"

using namespace dstrain;
using namespace dstrain::test;

namespace {

constexpr TokenFileInfo kInfo{42, 100, 0};

template <class T>
std::string bytes_of(const std::vector<T>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(values[0])};
}

template <class T>
std::string llmc(std::int32_t magic, std::int32_t version, const std::vector<T>& ids) {
  std::vector<std::int32_t> header(256);
  header[0] = magic;
  header[1] = version;
  header[2] = static_cast<std::int32_t>(ids.size());
  return bytes_of(header) + bytes_of(ids);
}

void read_llmc(const std::string& bytes) {
  MemoryFiles files;
  files.put("d/a.bin", bytes);
  TokenWriter out(files, "o/x", kInfo, 1000);
  import_llmc(files, {"d/a.bin"}, kInfo, out);
  out.finish();
}

// Index and ids in one input: the length of the index first.
std::string megatron() {
  const std::vector<std::uint16_t> ids{1, 2, 0, 3, 4, 5, 0};
  std::string index("MMIDIDX\0\0", 9);
  index += bytes_of(std::vector<std::uint64_t>{1}) + '\x08' + bytes_of(std::vector<std::uint64_t>{3, 3});
  index += bytes_of(std::vector<std::int32_t>{3, 2, 2}) + bytes_of(std::vector<std::int64_t>{0, 6, 10});
  index += bytes_of(std::vector<std::int64_t>{0, 1, 3});
  return static_cast<char>(index.size()) + index + bytes_of(ids);
}

void read_megatron(const std::string& bytes) {
  const std::size_t n = bytes.empty() ? 0 : static_cast<unsigned char>(bytes[0]);
  MemoryFiles files;
  files.put("d/a.idx", bytes.empty() ? "" : bytes.substr(1, n));
  files.put("d/a.bin", bytes.size() > 1 + n ? bytes.substr(1 + n) : "");
  TokenWriter out(files, "o/x", kInfo, 1000);
  import_megatron(files, {"d/a"}, kInfo, out);
  out.finish();
}

void read_foreign(const std::string& input) {
  if (input.empty()) return;
  (input[0] == 0 ? read_llmc : read_megatron)(input.substr(1));
}

}  // namespace

int main(int argc, char** argv) {
  keep_hdf5_memory();
  const auto of = [](char kind, const std::string& bytes) { return kind + bytes; };
  return fuzz::run(argc, argv,
                   {of(0, llmc(20240520, 1, std::vector<std::uint16_t>{0, 1, 2, 0, 3})),
                    of(0, llmc(20240801, 7, std::vector<std::uint32_t>{1, 2, 0, 3, 0})), of(1, megatron())},
                   {"MMIDIDX"}, read_foreign);
}
