#pragma once
// A model's weights in safetensors files, FP8 ones as the numbers that they stand for. Untrusted, as the files.

#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "lib/checkpoint/safetensors.h"

namespace dstrain {

// One .safetensors file, or a directory with model.safetensors or model.safetensors.index.json and the files that it
// names.
//
// DeepSeek's FP8 form: NAME of F8_E4M3 has NAME_scale_inv, F32, one scale a block of 128 x 128; a weight is the product
// in float32 rounded to bfloat16, as DeepSeek's own conversion has it. The scales are no tensors of the model.
class SafetensorsModel {
 public:
  // Opens all files. Throws Error{data} naming the file and the broken rule.
  SafetensorsModel(const Files& files, const std::string& path);

  bool has(const std::string& name) const { return where_.contains(name); }
  // The file that holds a tensor; throws Error{data} when none does.
  const SafetensorsFile& file_of(const std::string& name) const;
  // Throws Error{data} unless the tensor has this shape.
  void require_shape(const std::string& name, const Shape& shape) const;
  std::vector<std::string> names() const;  // sorted, without scales
  // F32, F16 or BF16; BF16 for an FP8 weight.
  std::string dtype(const std::string& name) const;
  bool fp8() const { return fp8_; }  // whether any weight is

  // The rectangular part at `offset` of size `extent` of a tensor of one or two dimensions, row by row. Throws
  // Error{data} naming file and tensor when a weight or a scale is not finite, or a scale negative. From any threads.
  void read(const std::string& name, const Shape& offset, const Shape& extent, std::span<float> to) const;

 private:
  void find_scales(const std::string& path);

  std::string path_;
  std::vector<std::unique_ptr<SafetensorsFile>> files_;
  std::map<std::string, const SafetensorsFile*> where_;
  std::map<std::string, const SafetensorsFile*> scales_;  // by the scales' own names
  bool fp8_ = false;
};

}  // namespace dstrain
