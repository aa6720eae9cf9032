#include "lib/checkpoint/safetensors_model.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "lib/checkpoint/untrusted_json.h"
#include "lib/core/dtype.h"

namespace dstrain {

namespace {

constexpr std::uint64_t kMaxIndex = 100'000'000;  // bytes

// model.safetensors.index.json: the file of each tensor.
class IndexReader final : public JsonReader {
 public:
  explicit IndexReader(const std::string& file) : file_(file) {}

  std::map<std::string, std::string> files;  // by tensor
  bool found = false;

  void text(const std::string& value) override {
    if (!in_map()) return;
    // A name of this directory alone: no path, nothing hidden.
    const bool plain = value.ends_with(".safetensors") && !value.starts_with('.') && value.size() <= 255 &&
                       std::none_of(value.begin(), value.end(), [](char c) {
                         return c == '/' || c == '\\' || static_cast<unsigned char>(c) < ' ';
                       });
    require(plain, ExitCode::data, "{}: tensor {}: {} is no name of a .safetensors file beside the index", file_,
            quote(path()[1]), quote(value));
    files[path()[1]] = value;
  }
  void number(std::uint64_t) override { no_text(); }
  void other() override { no_text(); }
  void opened(bool list) override {
    const bool map = path().size() == 1 && path()[0] == "weight_map";
    require(!(list && (map || path().empty())), ExitCode::data, "{}: a list in the place of {}", file_,
            map ? "weight_map" : "the index");
    found = found || map;
    if (path().size() > 1) no_text();
  }

 private:
  bool in_map() const { return path().size() == 2 && path()[0] == "weight_map"; }
  void no_text() const {
    if (!path().empty() && path()[0] == "weight_map")
      fail(ExitCode::data, "{}: {}: no name of a file", file_, quote(path().back()));
  }
  const std::string& file_;
};

}  // namespace

SafetensorsModel::SafetensorsModel(const Files& files, const std::string& path) : path_(path) {
  const auto open = [&](const std::string& name) {
    files_.push_back(std::make_unique<SafetensorsFile>(files, name));
    const SafetensorsFile* file = files_.back().get();
    for (const auto& [tensor, entry] : file->entries()) {
      const auto [at, first] = where_.emplace(tensor, file);
      require(first, ExitCode::data, "{}: tensor {} is in {} too", name, quote(tensor), at->second->path());
    }
    return file;
  };
  const std::string single = join_path(path, "model.safetensors"),
                    index = join_path(path, "model.safetensors.index.json");
  if (!files.is_directory(path)) {
    open(path);
  } else if (files.exists(single)) {
    open(single);
  } else {
    require(files.exists(index), ExitCode::data, "{}: neither model.safetensors nor model.safetensors.index.json",
            path);
    IndexReader reader(index);
    read_json(read_file(files, index, kMaxIndex), index, reader);
    require(reader.found && !reader.files.empty(), ExitCode::data, "{}: no weight_map, or an empty one", index);
    std::map<std::string, const SafetensorsFile*> opened;
    for (const auto& [tensor, name] : reader.files) opened[name] = nullptr;
    for (auto& [name, file] : opened) {
      require(files.exists(join_path(path, name)), ExitCode::data, "{}: its file {} is missing", index, name);
      file = open(join_path(path, name));
    }
    for (const auto& [tensor, name] : reader.files) {
      const auto at = where_.find(tensor);
      require(at != where_.end() && at->second == opened[name], ExitCode::data, "{}: tensor {} is not in {}", index,
              quote(tensor), name);
    }
    for (const auto& [tensor, file] : where_)
      require(reader.files.contains(tensor), ExitCode::data, "{}: tensor {} is not in {}", file->path(), quote(tensor),
              index);
  }
  find_scales(path);
}

void SafetensorsModel::find_scales(const std::string& path) {
  for (const auto& [name, file] : where_) {
    const SafetensorsFile::Entry& weight = file->entry(name);
    if (weight.dtype != "F8_E4M3") continue;
    fp8_ = true;
    require(weight.shape.rank() == 2, ExitCode::data, "{}: tensor {} is F8_E4M3 {}; matrices alone have scales",
            file->path(), quote(name), weight.shape.to_string());
    const std::string scale = name + kScaleSuffix;
    const auto at = where_.find(scale);
    require(at != where_.end(), ExitCode::data, "{}: tensor {} is F8_E4M3, and there is no {} in {}", file->path(),
            quote(name), quote(scale), path);
    const SafetensorsFile::Entry& entry = at->second->entry(scale);
    const Shape expected = scale_shape(weight.shape);
    require(entry.dtype == "F32" && entry.shape == expected, ExitCode::data,
            "{}: tensor {} is {} {}; F32 {} belongs to a weight of {}", at->second->path(), quote(scale), entry.dtype,
            entry.shape.to_string(), expected.to_string(), weight.shape.to_string());
    scales_[scale] = at->second;
  }
  for (const auto& [scale, file] : scales_) where_.erase(scale);
}

const SafetensorsFile& SafetensorsModel::file_of(const std::string& name) const {
  const auto it = where_.find(name);
  require(it != where_.end(), ExitCode::data, "{}: no tensor '{}'", path_, name);
  return *it->second;
}

void SafetensorsModel::require_shape(const std::string& name, const Shape& shape) const {
  const SafetensorsFile& file = file_of(name);
  const Shape& found = file.entry(name).shape;
  require(found == shape, ExitCode::data, "{}: tensor '{}' has shape {}, the model's is {}", file.path(), name,
          found.to_string(), shape.to_string());
}

std::vector<std::string> SafetensorsModel::names() const {
  std::vector<std::string> all;
  for (const auto& [name, file] : where_) all.push_back(name);
  return all;
}

std::string SafetensorsModel::dtype(const std::string& name) const {
  const std::string& dtype = file_of(name).entry(name).dtype;
  return dtype == "F8_E4M3" ? "BF16" : dtype;
}

void SafetensorsModel::read(const std::string& name, const Shape& offset, const Shape& extent,
                            std::span<float> to) const {
  const SafetensorsFile& file = file_of(name);
  file.read_f32(name, offset, extent, to);
  const Index columns = extent[extent.rank() - 1], rows = columns == 0 ? 0 : static_cast<Index>(to.size()) / columns;
  if (file.entry(name).dtype == "F8_E4M3" && !to.empty()) {
    const std::string scale = name + kScaleSuffix;
    const SafetensorsFile& scales = *scales_.at(scale);
    const Index top = offset[0] / kScaleBlock, left = offset[1] / kScaleBlock;
    const Shape blocks{(offset[0] + rows - 1) / kScaleBlock - top + 1,
                       (offset[1] + columns - 1) / kScaleBlock - left + 1};
    const std::vector<float> factors = scales.read_f32(scale, {top, left}, blocks);
    for (std::size_t i = 0; i < factors.size(); ++i)
      require(std::isfinite(factors[i]) && factors[i] >= 0, ExitCode::data, "{}: tensor '{}' holds the scale {}",
              scales.path(), scale, factors[i]);
    for (Index r = 0; r < rows; ++r) {
      const float* const row = factors.data() + ((offset[0] + r) / kScaleBlock - top) * blocks[1];
      float* const values = to.data() + r * columns;
      for (Index c = 0; c < columns; ++c)
        values[c] = static_cast<float>(bfloat16(values[c] * row[(offset[1] + c) / kScaleBlock - left]));
    }
  }
  for (std::size_t i = 0; i < to.size(); ++i)
    if (!std::isfinite(to[i])) {
      const Index row = static_cast<Index>(i) / columns + (extent.rank() == 2 ? offset[0] : 0),
                  column = static_cast<Index>(i) % columns + offset[extent.rank() - 1];
      fail(ExitCode::data, "{}: tensor '{}' holds {} in row {}, column {}", file.path(), name, to[i], row, column);
    }
}

}  // namespace dstrain
