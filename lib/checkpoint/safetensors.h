#pragma once
// Reads Hugging Face's safetensors files: 8 bytes little-endian header size, a JSON header, then the tensors' bytes.
// Files are untrusted: sizes, offsets, overlaps, holes, duplicate names and dtypes are checked before anything is used.

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "lib/core/files.h"
#include "lib/core/shape.h"

namespace dstrain {

class SafetensorsFile {
 public:
  struct Entry {
    std::string dtype;  // F32, F16, BF16, I64, ...
    Shape shape;
    std::uint64_t begin = 0, end = 0;  // absolute bytes in the file
  };

  // Throws Error{data} naming the file and the broken rule.
  SafetensorsFile(const Files& files, std::string path);

  const std::string& path() const { return path_; }
  const std::map<std::string, Entry>& entries() const { return entries_; }
  // Throws Error{data} when there is no such tensor.
  const Entry& entry(const std::string& name) const;

  // A whole tensor as float32 (from F32, F16, BF16) or int64 (from I64, I32).
  std::vector<float> read_f32(const std::string& name) const;
  std::vector<std::int64_t> read_i64(const std::string& name) const;
  // The rectangular part at `offset` of size `extent` of a tensor of one or two dimensions, row by row.
  std::vector<float> read_f32(const std::string& name, const Shape& offset, const Shape& extent) const;

 private:
  std::string path_;
  std::unique_ptr<File> file_;
  std::map<std::string, Entry> entries_;
};

// A model's weights: one .safetensors file, or a directory with model.safetensors or model.safetensors.index.json.
class SafetensorsModel {
 public:
  SafetensorsModel(const Files& files, const std::string& path);

  bool has(const std::string& name) const { return where_.contains(name); }
  // The file that holds a tensor; throws Error{data} when none does.
  const SafetensorsFile& file_of(const std::string& name) const;
  std::vector<std::string> names() const;

 private:
  std::string path_;
  std::vector<std::unique_ptr<SafetensorsFile>> files_;
  std::map<std::string, const SafetensorsFile*> where_;
};

}  // namespace dstrain
