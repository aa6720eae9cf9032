// Hostile safetensors files and indexes are refused by rule, with the file and the value; FP8 weights are DeepSeek's.

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "lib/checkpoint/safetensors_model.h"
#include "lib/core/dtype.h"
#include "lib/core/small_floats.h"
#include "tests/support/catch.h"
#include "tests/support/memory_files.h"

using namespace dstrain;
using namespace dstrain::test;

namespace {

std::string file_of(const std::string& header, std::size_t data, std::uint64_t claimed = 0) {
  std::string size(8, '\0');
  const std::uint64_t bytes = claimed ? claimed : header.size();
  std::memcpy(size.data(), &bytes, 8);
  return size + header + std::string(data, '\x11');
}

std::string refusal_of_file(const std::string& bytes) {
  MemoryFiles files;
  files.put("m.safetensors", bytes);
  try {
    const SafetensorsFile file(files, "m.safetensors");
  } catch (const Error& e) {
    CHECK(e.code() == ExitCode::data);
    return e.what();
  }
  return "";
}

// A directory of files; the words of its refusal, "" when it is taken. All tensors are read.
std::string refusal(const std::map<std::string, std::string>& contents) {
  MemoryFiles files;
  for (const auto& [name, bytes] : contents) files.put("d/" + name, bytes);
  try {
    const SafetensorsModel model(files, "d");
    for (const std::string& name : model.names()) {
      const Shape shape = model.file_of(name).entry(name).shape;
      std::vector<float> values(static_cast<std::size_t>(shape.numel()));
      model.read(name, shape.rank() == 1 ? Shape{0} : Shape{0, 0}, shape, values);
    }
  } catch (const Error& e) {
    CHECK(e.code() == ExitCode::data);
    return e.what();
  }
  return "";
}

std::string with_values(const std::string& header, const std::vector<float>& values, std::size_t bytes_before = 0) {
  std::string file = file_of(header, bytes_before);
  file.append(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float));
  return file;
}

}  // namespace

TEST_CASE("a safetensors file that breaks a rule is refused with its name and the value", "[safetensors]") {
  const std::string a = R"("a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]})";
  CHECK(refusal_of_file(file_of("{" + a + "}", 24)) == "");
  CHECK(refusal_of_file(file_of("{" + a + R"(,"__metadata__":{"format":"pt"}}   )", 24)) == "");
  const std::string nested(9, '['), deep = R"({"a":)" + nested;
  struct Case {
    std::string bytes, says;
  };
  const std::vector<Case> cases{
      {"", "m.safetensors: 0 bytes, too short for safetensors"},
      {file_of("{" + a + "}", 24, 1ull << 63), "m.safetensors: header of 9223372036854775808 bytes in a file of 89"},
      {file_of("{" + a + "}", 24, 82), "m.safetensors: header of 82 bytes in a file of 89"},
      {file_of("[]", 0), "m.safetensors: the header is no object"},
      {file_of("7", 0), "m.safetensors: tensor '': no place for the number 7"},
      {file_of("{" + a, 24), "m.safetensors: no JSON from byte 57 on"},
      {file_of("{" + a + "," + a + "}", 24), "m.safetensors: 'a' appears twice"},
      {file_of(R"({"a":{"dtype":"F32","dtype":"F32","shape":[6],"data_offsets":[0,24]}})", 24),
       "m.safetensors: 'dtype' appears twice"},
      {file_of("{" + a + "}", 25), "m.safetensors: 1 bytes after the last tensor"},
      {file_of("{" + a + "}", 23), "tensor 'a': data_offsets 0 to 24 in a file with 23 bytes of data"},
      {file_of("{" + a + R"(,"b":{"dtype":"F32","shape":[1],"data_offsets":[20,24]}})", 24),
       "m.safetensors: tensor 'b' begins at byte 140: it overlaps with what ends at byte 144"},
      {file_of("{" + a + R"(,"b":{"dtype":"F32","shape":[1],"data_offsets":[28,32]}})", 32),
       "m.safetensors: tensor 'b' begins at byte 148: it leaves a hole from byte 144"},
      {file_of(R"({"a":{"dtype":"F32","shape":[6],"data_offsets":[24,0]}})", 24),
       "tensor 'a': data_offsets 24 to 0 in a file with 24 bytes of data"},
      {file_of(R"({"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,24]}})", 24),
       "tensor 'a': data_offsets 0 to 24 for 16 bytes of F32 (2, 2)"},
      {file_of(R"({"a":{"dtype":"F32","shape":[1099511627776,1099511627776],"data_offsets":[0,24]}})", 24),
       "tensor 'a': more elements than can be"},
      {file_of(R"({"a":{"dtype":"F32","shape":[4294967296,4294967296,0],"data_offsets":[0,0]}})", 0),
       "tensor 'a': more elements than can be"},
      {file_of(R"({"a":{"dtype":"F32","shape":[18446744073709551615],"data_offsets":[0,24]}})", 24),
       "tensor 'a': a dimension of 18446744073709551615"},
      {file_of(R"({"a":{"dtype":"F32","shape":[18446744073709551616],"data_offsets":[0,24]}})", 24),
       "tensor 'a': a value that is neither a text nor a whole number"},
      {file_of(R"({"a":{"dtype":"F32","shape":[-6],"data_offsets":[0,24]}})", 24), "neither a text nor a whole number"},
      {file_of(R"({"a":{"dtype":"F32","shape":[6.0],"data_offsets":[0,24]}})", 24), "neither a text nor a whole"},
      {file_of(R"({"a":{"dtype":"F32","shape":[1,1,1,1,1,1,6],"data_offsets":[0,24]}})", 24), "more than 6 dimensions"},
      {file_of(R"({"a":{"dtype":"F32","shape":[6],"data_offsets":[0,12,24]}})", 24), "no place for the number 24"},
      {file_of(R"({"a":{"dtype":"F32","shape":[6],"data_offsets":[24]}})", 24), "are missing"},
      {file_of(R"({"a":{"dtype":"F33","shape":[6],"data_offsets":[0,24]}})", 24), "tensor 'a': unknown dtype 'F33'"},
      {file_of(R"({"a":{"dtype":4,"shape":[6],"data_offsets":[0,24]}})", 24), "no place for the number 4"},
      {file_of(R"({"a":{"dtype":"F32","data_offsets":[0,24]}})", 24), "dtype, shape or data_offsets are missing"},
      {file_of(R"({"a":{"dtype":"F32","shape":[6],"data_offsets":[0,24],"more":1}})", 24), "no place for the number 1"},
      {file_of(R"({"a":{"dtype":"F32","shape":[[6]],"data_offsets":[0,24]}})", 24), "no list or object belongs at"},
      {file_of(R"({"a":[1]})", 0), "tensor 'a': no object"},
      {file_of(R"({"__metadata__":{"a":1}})", 0), "tensor '__metadata__': no place for the number 1"},
      {file_of(deep, 0), "tensor 'a': no object"},
      {file_of(R"({"__metadata__":)" + nested, 0), "no object"},
      {file_of(R"({"a\n\u001b[2J":{"dtype":"F32","shape":[6],"data_offsets":[0,24]}})", 24),
       "tensor 'a\\n\\u001b[2J': a name with a control character"},
      {file_of(R"({"":{"dtype":"F32","shape":[6],"data_offsets":[0,24]}})", 24), "a name of 0 bytes"},
      {file_of("{\"" + std::string(2000, 'x') + R"(":{"dtype":"F32","shape":[6],"data_offsets":[0,24]}})", 24),
       "a name of 2000 bytes"},
      {file_of("{\"a\xff\":1}", 0), "no JSON from byte"},
  };
  for (const Case& c : cases) {
    const std::string said = refusal_of_file(c.bytes);
    INFO(c.bytes.substr(std::min<std::size_t>(8, c.bytes.size()), 200));
    CHECK_THAT(said, Catch::Matchers::Contains(c.says));
    CHECK_THAT(said, Catch::Matchers::Contains("m.safetensors: "));
  }
}

TEST_CASE("an index that breaks a rule is refused with its name and the value", "[safetensors]") {
  const std::string a = file_of(R"({"a":{"dtype":"F32","shape":[6],"data_offsets":[0,24]}})", 24),
                    b = file_of(R"({"b":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]}})", 4);
  const auto indexed = [&](const std::string& index) {
    return refusal({{"model.safetensors.index.json", index}, {"1.safetensors", a}, {"2.safetensors", b}});
  };
  const std::string good = R"("a":"1.safetensors","b":"2.safetensors")";
  CHECK(indexed(R"({"metadata":{"total_size":28,"deeper":[{}]},"weight_map":{)" + good + "}}") == "");
  const std::string index = "d/model.safetensors.index.json: ";
  struct Case {
    std::string text, says;
  };
  const std::vector<Case> cases{
      {"", index + "no JSON from byte"},
      {"[]", index + "a list in the place of the index"},
      {"{}", index + "no weight_map, or an empty one"},
      {R"({"weight_map":{}})", index + "no weight_map, or an empty one"},
      {R"({"weight_map":["a"]})", index + "a list in the place of weight_map"},
      {R"({"weight_map":"a"})", index + "no weight_map"},
      {R"({"weight_map":{"a":1}})", index + "'a': no name of a file"},
      {R"({"weight_map":{"a":null}})", index + "'a': no name of a file"},
      {R"({"weight_map":{"a":{"b":"1.safetensors"}}})", index + "'a': no name of a file"},
      {R"({"weight_map":{"a":"1.safetensors","a":"2.safetensors"}})", index + "'a' appears twice"},
      {R"({"weight_map":{"a":"../1.safetensors"}})", index + "tensor 'a': '../1.safetensors' is no name of"},
      {R"({"weight_map":{"a":"/etc/1.safetensors"}})", index + "tensor 'a': '/etc/1.safetensors' is no name of"},
      {R"({"weight_map":{"a":"x\\1.safetensors"}})", "is no name of a .safetensors file beside the index"},
      {R"({"weight_map":{"a":"1\u0000.safetensors"}})", "is no name of a .safetensors file beside the index"},
      {R"({"weight_map":{"a":".safetensors"}})", "is no name of a .safetensors file beside the index"},
      {R"({"weight_map":{"a":"passwd"}})", "tensor 'a': 'passwd' is no name of"},
      {R"({"weight_map":{"a":"3.safetensors"}})", index + "its file 3.safetensors is missing"},
      {R"({"weight_map":{"a":"1.safetensors","b":"1.safetensors"}})", index + "tensor 'b' is not in 1.safetensors"},
      {R"({"weight_map":{"a":"1.safetensors","b":"2.safetensors","c":"2.safetensors"}})",
       index + "tensor 'c' is not in 2.safetensors"},
      {R"({"weight_map":)" + std::string(100000, '['), index + "a list in the place of weight_map"},
      {R"({"metadata":)" + std::string(100000, '['), index + "nested deeper than 8"},
  };
  for (const Case& c : cases) {
    INFO(c.text.substr(0, 200));
    CHECK_THAT(indexed(c.text), Catch::Matchers::Contains(c.says));
  }
  // A tensor that the index does not know, one in two files, and neither file nor index.
  const std::string both = file_of(
      R"({"a":{"dtype":"F32","shape":[6],"data_offsets":[0,24]},"z":{"dtype":"F32","shape":[1],"data_offsets":[24,28]}})",
      28);
  const std::string one = R"({"weight_map":{"a":"1.safetensors"}})", two = "{\"weight_map\":{" + good + "}}";
  CHECK_THAT(refusal({{"model.safetensors.index.json", one}, {"1.safetensors", both}}),
             Catch::Matchers::Contains("d/1.safetensors: tensor 'z' is not in d/model.safetensors.index.json"));
  CHECK_THAT(refusal({{"model.safetensors.index.json", two}, {"1.safetensors", a}, {"2.safetensors", a}}),
             Catch::Matchers::Contains("d/2.safetensors: tensor 'a' is in d/1.safetensors too"));
  CHECK_THAT(refusal({{"x", ""}}), Catch::Matchers::Contains("neither model.safetensors nor"));
}

TEST_CASE("numbers that are not finite are refused with tensor, row and column", "[safetensors]") {
  const std::string header = R"({"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}})";
  CHECK(refusal({{"model.safetensors", with_values(header, {1, 2, 3, 4, 5, 6})}}) == "");
  const float nan = std::numeric_limits<float>::quiet_NaN(), inf = std::numeric_limits<float>::infinity();
  CHECK(refusal({{"model.safetensors", with_values(header, {1, 2, 3, 4, nan, 6})}}) ==
        "d/model.safetensors: tensor 'a' holds nan in row 1, column 1");
  CHECK(refusal({{"model.safetensors", with_values(header, {1, 2, -inf, 4, 5, 6})}}) ==
        "d/model.safetensors: tensor 'a' holds -inf in row 0, column 2");
  CHECK(refusal({{"model.safetensors", file_of(R"({"a":{"dtype":"I64","shape":[3],"data_offsets":[0,24]}})", 24)}}) ==
        "d/model.safetensors: tensor 'a' is I64; F32, F16, BF16 and F8_E4M3 are read");
}

TEST_CASE("FP8 weights: scales of the right kind, and the product rounded to bfloat16", "[safetensors]") {
  constexpr Index rows = 130, columns = 259;
  const Shape blocks{2, 3};
  const auto header = [&](const std::string& dtype, const std::string& shape, std::size_t bytes) {
    return format(
        R"({{"w":{{"dtype":"F8_E4M3","shape":[{},{}],"data_offsets":[0,{}]}},"w_scale_inv":{{"dtype":"{}","shape":{},"data_offsets":[{},{}]}}}})",
        rows, columns, rows * columns, dtype, shape, rows * columns, rows * columns + static_cast<Index>(bytes));
  };
  std::string weights;
  for (Index i = 0; i < rows * columns; ++i) {
    const auto byte = static_cast<unsigned char>(i * 37 % 251);
    weights.push_back(static_cast<char>((byte & 0x7f) == 0x7f ? 0 : byte));
  }
  std::vector<float> scales{0.0123f, 3.7f, 1e-5f, 0.99f, 117.3f, 0.0f};
  const auto file = [&](const std::string& h) {
    std::string bytes = file_of(h, 0) + weights;
    return bytes.append(reinterpret_cast<const char*>(scales.data()), scales.size() * sizeof(float));
  };
  MemoryFiles files;
  files.put("d/model.safetensors", file(header("F32", "[2,3]", 24)));
  const SafetensorsModel model(files, "d");
  CHECK(model.fp8());
  CHECK(model.names() == std::vector<std::string>{"w"});
  CHECK(model.dtype("w") == "BF16");
  // Whole, and parts that begin and end within blocks.
  int wrong = 0;
  for (const auto& [offset, extent] : {std::pair<Shape, Shape>{{0, 0}, {rows, columns}},
                                       {{127, 100}, {3, 159}},
                                       {{128, 256}, {2, 3}},
                                       {{5, 127}, {1, 2}}}) {
    std::vector<float> values(static_cast<std::size_t>(extent.numel()));
    model.read("w", offset, extent, values);
    for (Index r = 0; r < extent[0]; ++r)
      for (Index c = 0; c < extent[1]; ++c) {
        const Index row = offset[0] + r, column = offset[1] + c;
        const auto byte = static_cast<std::uint8_t>(weights[static_cast<std::size_t>(row * columns + column)]);
        const double exponent = byte >> 3 & 15, mantissa = byte & 7;
        const double magnitude =
            exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(8 + mantissa, static_cast<int>(exponent) - 10);
        // The float32 product, to eight bits: ties cannot be told by adding half a unit, so round by remainder.
        const float product =
            static_cast<float>((byte & 0x80 ? -magnitude : magnitude) *
                               static_cast<double>(scales[static_cast<std::size_t>(row / 128 * 3 + column / 128)]));
        int power = 0;
        const double scaled = std::ldexp(std::frexp(static_cast<double>(product), &power), 8);
        const double rounded = std::ldexp(std::nearbyint(scaled), power - 8);
        wrong += static_cast<double>(values[static_cast<std::size_t>(r * extent[1] + c)]) != rounded;
      }
  }
  CHECK(wrong == 0);

  const auto refused = [&](const std::string& h) { return refusal({{"model.safetensors", file(h)}}); };
  CHECK(refused(header("F32", "[2,3]", 24)) == "");
  CHECK(refused(header("F32", "[3,2]", 24)) ==
        "d/model.safetensors: tensor 'w_scale_inv' is F32 (3, 2); F32 (2, 3) belongs to a weight of (130, 259)");
  CHECK(refused(header("F32", "[6]", 24)) ==
        "d/model.safetensors: tensor 'w_scale_inv' is F32 (6); F32 (2, 3) belongs to a weight of (130, 259)");
  CHECK(refused(header("BF16", "[2,6]", 24)) ==
        "d/model.safetensors: tensor 'w_scale_inv' is BF16 (2, 6); F32 (2, 3) belongs to a weight of (130, 259)");
  for (const auto& [value, shown] : {std::pair{std::numeric_limits<float>::quiet_NaN(), "nan"},
                                     {std::numeric_limits<float>::infinity(), "inf"},
                                     {-0.5f, "-0.5"}}) {
    scales[4] = value;
    CHECK(refused(header("F32", "[2,3]", 24)) ==
          format("d/model.safetensors: tensor 'w_scale_inv' holds the scale {}", shown));
  }
  scales[4] = 1;
  weights[static_cast<std::size_t>(129 * columns + 7)] = '\x7f';
  CHECK(refused(header("F32", "[2,3]", 24)) == "d/model.safetensors: tensor 'w' holds nan in row 129, column 7");
  CHECK(
      refusal({{"model.safetensors", file_of(R"({"w":{"dtype":"F8_E4M3","shape":[1,2],"data_offsets":[0,2]}})", 2)}}) ==
      "d/model.safetensors: tensor 'w' is F8_E4M3, and there is no 'w_scale_inv' in d");
  CHECK(refusal({{"model.safetensors", file_of(R"({"w":{"dtype":"F8_E4M3","shape":[2],"data_offsets":[0,2]}})", 2)}}) ==
        "d/model.safetensors: tensor 'w' is F8_E4M3 (2); matrices alone have scales");
}

TEST_CASE("what the writer writes reads back, and a number past float16 is refused", "[safetensors]") {
  MemoryFiles files;
  SafetensorsWriter writer(files, "m.safetensors",
                           {{"b", "BF16", {2}}, {"a", "F16", {1, 2}}, {"z", "F32", {3}}, {"e", "BF16", {0}}});
  std::vector<std::string> order;
  for (const FileTensor& t : writer.tensors()) order.push_back(t.name);
  CHECK(order == std::vector<std::string>{"z", "b", "e", "a"});
  const std::vector<float> values{1.5f, -2.25f, 1e30f, 3.1415927f, -1.0f, 0.333333f, 65504.0f};
  writer.append(std::span(values).first(4));
  writer.append(std::span(values).subspan(4));
  writer.finish();
  const SafetensorsFile file(files, "m.safetensors");
  CHECK(file.read_f32("z") == std::vector<float>{1.5f, -2.25f, 1e30f});
  CHECK(file.read_f32("b") == std::vector<float>{3.140625f, -1.0f});
  CHECK(file.read_f32("a") == std::vector<float>{0.33325195f, 65504.0f});
  CHECK(files.get("m.safetensors").substr(8, 62) ==
        R"({"__metadata__":{"format":"pt"},"z":{"dtype":"F32","shape":[3])");
  SafetensorsWriter narrow(files, "n.safetensors", {{"a", "F16", {2}}});
  const std::vector<float> large{1, 70000};
  try {
    narrow.append(large);
    FAIL("70000 was written as float16");
  } catch (const Error& e) {
    CHECK(std::string(e.what()) == "tensor 'a' holds 70000, more than float16 reaches");
  }
}
