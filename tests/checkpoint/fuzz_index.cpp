// Directories of safetensors: an index and two files, apart by zero bytes; FP8 weights with their scales.

#include <cstring>

#include "lib/checkpoint/safetensors_model.h"
#include "tests/support/fuzz.h"
#include "tests/support/memory_files.h"

using namespace dstrain;
using namespace dstrain::test;

namespace {

// Index, header and data of the first file, header and data of the second: parts apart by '\0'. Sizes of headers are
// made here, so that what lies behind them is met.
void subject(const std::string& input) {
  std::vector<std::string> parts(1);
  for (const char c : input) {
    if (c == '\0' && parts.size() < 5)
      parts.emplace_back();
    else
      parts.back() += c;
  }
  parts.resize(5);
  MemoryFiles files;
  files.put("d/model.safetensors.index.json", parts[0]);
  const char* const names[] = {"d/a.safetensors", "d/b.safetensors"};
  for (std::size_t i = 0; i < 2; ++i) {
    const std::string& header = parts[1 + 2 * i];
    const std::uint64_t size = header.size();
    std::string bytes(8, '\0');
    std::memcpy(bytes.data(), &size, 8);
    files.put(names[i], bytes + header + parts[2 + 2 * i]);
  }
  const SafetensorsModel model(files, "d");
  for (const std::string& name : model.names()) {
    const Shape& shape = model.file_of(name).entry(name).shape;
    if (shape.rank() == 0 || shape.rank() > 2) continue;
    model.dtype(name);
    std::vector<float> values(static_cast<std::size_t>(shape.numel()));
    model.read(name, shape.rank() == 1 ? Shape{0} : Shape{0, 0}, shape, values);
    if (shape.rank() == 2 && shape[0] > 1 && shape[1] > 1) {
      values.resize(static_cast<std::size_t>(shape[1] - 1));
      model.read(name, {shape[0] - 1, 1}, {1, shape[1] - 1}, values);
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  const std::string zero(1, '\0');
  const std::string index = R"({"metadata":{"total_size":60},"weight_map":{"w":"a.safetensors",)"
                            R"("w_scale_inv":"b.safetensors","n":"b.safetensors"}})";
  const std::string first = R"({"w":{"dtype":"F8_E4M3","shape":[4,8],"data_offsets":[0,32]}})";
  const std::string second = R"({"n":{"dtype":"BF16","shape":[4],"data_offsets":[4,12]},)"
                             R"("w_scale_inv":{"dtype":"F32","shape":[1,1],"data_offsets":[0,4]}})";
  const std::string one = R"({"a":{"dtype":"F16","shape":[2,3],"data_offsets":[0,12]}})";
  return fuzz::run(
      argc, argv,
      {index + zero + first + zero + std::string(32, '\x31') + zero + second + zero + std::string(12, '\x3c'),
       R"({"weight_map":{"a":"a.safetensors","b":"b.safetensors"}})" + zero + one + zero + std::string(12, '\x22') +
           zero + R"({"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})" + zero + "abcd"},
      {"\"weight_map\":", "\"a.safetensors\"", "\"../a.safetensors\"", "\"/a\"", "_scale_inv", "F8_E4M3", "F8_E5M2",
       "[129,300]", "[", "]", "{", "}", ",", ":", "null", "18446744073709551615", "\\u0000", "\"w\":", "\x7f\xff"},
      subject);
}
