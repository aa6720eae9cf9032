#pragma once
// Hugging Face's safetensors files: 8 bytes little-endian header size, a JSON header, then the tensors' bytes.
// Files are untrusted: sizes, offsets, overlaps, holes, duplicate names and dtypes are checked before anything is used.

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "lib/core/file_tensor.h"
#include "lib/core/files.h"

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
  // The rectangular part at `offset` of size `extent` of a tensor of one or two dimensions, row by row. F8_E4M3 too,
  // without its scales.
  std::vector<float> read_f32(const std::string& name, const Shape& offset, const Shape& extent) const;
  // The same into memory of that many elements.
  void read_f32(const std::string& name, const Shape& offset, const Shape& extent, std::span<float> to) const;

 private:
  std::string path_;
  std::unique_ptr<File> file_;
  std::map<std::string, Entry> entries_;
};

// Writes a file whose tensors are known beforehand, in the order of the format's own library: by dtype from the widest
// on, then by name. The same tensors give the same bytes.
class SafetensorsWriter {
 public:
  // Creates `path`. The tensors' dtypes are F32, F16 or BF16.
  SafetensorsWriter(const Files& files, const std::string& path, std::vector<FileTensor> tensors);

  // In the order that they lie in.
  const std::vector<FileTensor>& tensors() const { return tensors_; }
  // Appends elements: they fill the tensors one after another. Throws Error{data} when a number is too large for F16,
  // naming the tensor.
  void append(std::span<const float> values);
  // REQUIRES: all elements were written. Syncs and closes; returns the file's bytes.
  std::uint64_t finish();

 private:
  std::string path_;
  std::unique_ptr<File> file_;
  std::vector<FileTensor> tensors_;
  std::size_t tensor_ = 0;  // that the next element belongs to
  Index element_ = 0;       // of it
  std::uint64_t at_ = 0;    // in the file
  std::vector<std::uint16_t> narrow_;
};

}  // namespace dstrain
