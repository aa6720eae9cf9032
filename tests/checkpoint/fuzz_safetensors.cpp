// Safetensors files, read whole.

#include <cstring>

#include "lib/checkpoint/safetensors.h"
#include "tests/support/fuzz.h"
#include "tests/support/memory_files.h"

using namespace dstrain;
using namespace dstrain::test;

namespace {

std::string file_of(const std::string& header, std::size_t data) {
  std::string size(8, '\0');
  const std::uint64_t bytes = header.size();
  std::memcpy(size.data(), &bytes, 8);
  return size + header + std::string(data, '\x3f');
}

void subject(const std::string& input) {
  MemoryFiles files;
  std::string bytes = input;
  // Half of the time the size is that of the header, so that what lies behind it is met.
  if (bytes.size() > 8 && bytes.size() % 2 == 0) {
    const std::size_t end = bytes.rfind('}');
    const std::uint64_t size = end == std::string::npos ? 0 : end - 7;
    std::memcpy(bytes.data(), &size, 8);
  }
  files.put("m.safetensors", bytes);
  const SafetensorsFile file(files, "m.safetensors");
  for (const auto& [name, entry] : file.entries()) {
    if (entry.dtype == "I64" || entry.dtype == "I32") {
      file.read_i64(name);
      continue;
    }
    file.read_f32(name);
    if (entry.shape.rank() == 2 && entry.shape.numel() > 0) file.read_f32(name, {0, 0}, {1, entry.shape[1]});
  }
}

}  // namespace

int main(int argc, char** argv) {
  const std::string header =
      R"({"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},)"
      R"("b":{"dtype":"BF16","shape":[4],"data_offsets":[24,32]},"c":{"dtype":"I64","shape":[1],"data_offsets":[32,40]}})";
  return fuzz::run(argc, argv,
                   {file_of(header, 40), file_of(R"({"x":{"dtype":"F32","shape":[1,2,1],"data_offsets":[0,8]}})", 8),
                    file_of(R"({"h":{"dtype":"F16","shape":[2,2],"data_offsets":[6,14]},)"
                            R"("q":{"dtype":"F8_E4M3","shape":[2,3],"data_offsets":[0,6]}})",
                            14)},
                   {"\"dtype\":", "\"shape\":[0]", "[", "]", "{", "}", ",", "\"F64\"", "\"I32\"", "-1",
                    "9223372036854775807", "4294967296", "\"a\":", "\\u0000", "../x", "null"},
                   subject);
}
