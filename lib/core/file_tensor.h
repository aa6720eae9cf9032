#pragma once
// A tensor as safetensors files name and type it.

#include <cstdint>
#include <string>

#include "lib/core/shape.h"

namespace dstrain {

struct FileTensor {
  std::string name;
  std::string dtype;  // F32, F16, BF16, F8_E4M3, I64, ...
  Shape shape;
};

// Bytes of an element; 0 for a name that the format does not have.
inline std::uint64_t file_dtype_bytes(const std::string& dtype) {
  struct Size {
    const char* name;
    std::uint64_t bytes;
  };
  static constexpr Size kSizes[] = {{"F64", 8}, {"I64", 8}, {"U64", 8},  {"F32", 4},     {"I32", 4},
                                    {"U32", 4}, {"F16", 2}, {"BF16", 2}, {"I16", 2},     {"U16", 2},
                                    {"I8", 1},  {"U8", 1},  {"BOOL", 1}, {"F8_E4M3", 1}, {"F8_E5M2", 1}};
  for (const Size& s : kSizes)
    if (dtype == s.name) return s.bytes;
  return 0;
}

// DeepSeek's FP8 files: a weight NAME of F8_E4M3 has NAME_scale_inv, F32, of one scale a block of 128 x 128.
constexpr Index kScaleBlock = 128;
constexpr const char* kScaleSuffix = "_scale_inv";
inline Shape scale_shape(const Shape& weight) {
  const auto blocks = [](Index n) { return (n + kScaleBlock - 1) / kScaleBlock; };
  return {blocks(weight[0]), blocks(weight[1])};
}

}  // namespace dstrain
