#include "lib/checkpoint/safetensors.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <nlohmann/json.hpp>
#include <set>
#include <span>
#include <utility>

#include "lib/core/dtype.h"

namespace dstrain {

namespace {

using Json = nlohmann::json;
constexpr std::uint64_t kMaxHeader = 100'000'000;  // bytes, as the format's own reader

std::uint64_t element_size(const std::string& dtype) {
  static const std::map<std::string, std::uint64_t> sizes{
      {"F64", 8}, {"I64", 8}, {"U64", 8}, {"F32", 4}, {"I32", 4},  {"U32", 4},     {"F16", 2},    {"BF16", 2},
      {"I16", 2}, {"U16", 2}, {"I8", 1},  {"U8", 1},  {"BOOL", 1}, {"F8_E4M3", 1}, {"F8_E5M2", 1}};
  const auto it = sizes.find(dtype);
  return it == sizes.end() ? 0 : it->second;
}

float half_to_float(std::uint16_t h) {
  const std::uint32_t sign = (h & 0x8000u) << 16, exponent = (h >> 10) & 31u, mantissa = h & 0x3ffu;
  if (exponent == 0) {  // zero and subnormals: mantissa * 2^-24
    const float v = static_cast<float>(mantissa) * 5.9604644775390625e-8f;
    return sign ? -v : v;
  }
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000u | (mantissa << 13));
  return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (mantissa << 13));
}

// Parses a JSON object whose keys must not repeat at any depth.
Json parse_without_duplicates(const std::string& text, const std::string& path) {
  std::vector<std::set<std::string>> keys;
  const auto watch = [&](int depth, Json::parse_event_t event, Json& parsed) {
    require(depth <= 8, ExitCode::data, "{}: header nested deeper than 8", path);
    if (event == Json::parse_event_t::object_start) keys.emplace_back();
    if (event == Json::parse_event_t::object_end) keys.pop_back();
    if (event == Json::parse_event_t::key)
      require(keys.back().insert(parsed.get<std::string>()).second, ExitCode::data, "{}: '{}' appears twice", path,
              parsed.get<std::string>());
    return true;
  };
  try {
    return Json::parse(text, watch);
  } catch (const Json::exception& e) {
    fail(ExitCode::data, "{}: header is no JSON: {}", path, e.what());
  }
}

}  // namespace

SafetensorsFile::SafetensorsFile(const Files& files, std::string path)
    : path_(std::move(path)), file_(files.open(path_, OpenMode::read)) {
  const std::uint64_t size = file_->size();
  require(size >= 8, ExitCode::data, "{}: {} bytes, too short for safetensors", path_, size);
  std::array<unsigned char, 8> raw{};
  file_->pread(std::as_writable_bytes(std::span(raw)), 0);
  std::uint64_t header_size = 0;
  for (int i = 7; i >= 0; --i) header_size = header_size << 8 | raw[static_cast<std::size_t>(i)];
  require(header_size <= kMaxHeader && header_size <= size - 8, ExitCode::data,
          "{}: header of {} bytes in a file of {}", path_, header_size, size);
  std::string text(header_size, '\0');
  file_->pread(std::as_writable_bytes(std::span(text)), 8);
  const Json header = parse_without_duplicates(text, path_);
  require(header.is_object(), ExitCode::data, "{}: header is no object", path_);

  const std::uint64_t base = 8 + header_size, data_size = size - base;
  std::vector<std::pair<std::uint64_t, std::uint64_t>> ranges;
  for (const auto& [name, value] : header.items()) {
    if (name == "__metadata__") continue;
    const auto rule = [&](bool ok, const char* what) {
      require(ok, ExitCode::data, "{}: tensor '{}': {}", path_, name, what);
    };
    rule(value.is_object() && value.contains("dtype") && value["dtype"].is_string(), "no dtype");
    rule(value.contains("shape") && value["shape"].is_array() && value["shape"].size() <= Shape::kMaxRank, "bad shape");
    rule(value.contains("data_offsets") && value["data_offsets"].is_array() && value["data_offsets"].size() == 2 &&
             value["data_offsets"][0].is_number_unsigned() && value["data_offsets"][1].is_number_unsigned(),
         "bad data_offsets");
    Entry entry{.dtype = value["dtype"].get<std::string>()};
    std::uint64_t bytes = element_size(entry.dtype);
    rule(bytes != 0, "unknown dtype");
    for (const Json& d : value["shape"]) {
      rule(d.is_number_unsigned() && d.get<std::uint64_t>() <= (1ull << 40), "bad shape");
      const auto n = d.get<std::uint64_t>();
      rule(n == 0 || bytes <= (1ull << 60) / n, "more elements than can be");
      bytes *= n;
      entry.shape.push_back(static_cast<Index>(n));
    }
    const auto begin = value["data_offsets"][0].get<std::uint64_t>(),
               end = value["data_offsets"][1].get<std::uint64_t>();
    rule(begin <= end && end <= data_size, "data_offsets outside the file");
    rule(end - begin == bytes, "data_offsets do not fit shape and dtype");
    entry.begin = base + begin;
    entry.end = base + end;
    ranges.emplace_back(begin, end);
    entries_.emplace(name, std::move(entry));
  }
  std::sort(ranges.begin(), ranges.end());
  std::uint64_t at = 0;
  for (const auto& [begin, end] : ranges) {
    require(begin == at, ExitCode::data, "{}: tensors overlap or leave a hole at byte {}", path_, base + at);
    at = end;
  }
  require(at == data_size, ExitCode::data, "{}: {} bytes after the last tensor", path_, data_size - at);
}

const SafetensorsFile::Entry& SafetensorsFile::entry(const std::string& name) const {
  const auto it = entries_.find(name);
  require(it != entries_.end(), ExitCode::data, "{}: no tensor '{}'", path_, name);
  return it->second;
}

std::vector<float> SafetensorsFile::read_f32(const std::string& name) const {
  const Entry& e = entry(name);
  const Shape whole = e.shape.rank() <= 2 && e.shape.rank() > 0 ? e.shape : Shape{e.shape.numel()};
  Shape zero = whole;
  for (int i = 0; i < zero.rank(); ++i) zero[i] = 0;
  if (e.shape.rank() == whole.rank()) return read_f32(name, zero, whole);
  // More than two dimensions: the bytes lie one after another all the same.
  std::vector<float> out(static_cast<std::size_t>(e.shape.numel()));
  require(e.dtype == "F32", ExitCode::data, "{}: tensor '{}' is {}, F32 expected", path_, name, e.dtype);
  file_->pread(std::as_writable_bytes(std::span(out)), e.begin);
  return out;
}

std::vector<float> SafetensorsFile::read_f32(const std::string& name, const Shape& offset, const Shape& extent) const {
  const Entry& e = entry(name);
  const int rank = e.shape.rank();
  require(rank == extent.rank() && (rank == 1 || rank == 2), ExitCode::data, "{}: tensor '{}' has shape {}", path_,
          name, e.shape.to_string());
  for (int i = 0; i < rank; ++i)
    require(offset[i] >= 0 && extent[i] >= 0 && offset[i] + extent[i] <= e.shape[i], ExitCode::data,
            "{}: tensor '{}' of shape {} has no part of {} at {}", path_, name, e.shape.to_string(), extent.to_string(),
            offset.to_string());
  const bool wide = e.dtype == "F32";
  require(wide || e.dtype == "F16" || e.dtype == "BF16", ExitCode::data,
          "{}: tensor '{}' is {}; F32, F16 and BF16 are read", path_, name, e.dtype);
  const Index rows = rank == 2 ? extent[0] : 1, columns = extent[rank - 1];
  const Index width = e.shape[rank - 1], first = offset[rank - 1], top = rank == 2 ? offset[0] : 0;
  const std::uint64_t element = element_size(e.dtype);
  std::vector<float> out(static_cast<std::size_t>(rows * columns));
  if (columns == 0) return out;
  // Whole rows are one span.
  const Index spans = columns == width ? std::min<Index>(rows, 1) : rows;
  const Index span_elements = columns == width ? rows * columns : columns;
  std::vector<std::uint16_t> narrow(wide ? 0 : static_cast<std::size_t>(span_elements));
  for (Index r = 0; r < spans; ++r) {
    const std::uint64_t at = e.begin + static_cast<std::uint64_t>((top + r) * width + first) * element;
    float* to = out.data() + r * span_elements;
    if (wide) {
      file_->pread(std::as_writable_bytes(std::span(to, static_cast<std::size_t>(span_elements))), at);
      continue;
    }
    file_->pread(std::as_writable_bytes(std::span(narrow)), at);
    for (Index i = 0; i < span_elements; ++i) {
      const std::uint16_t v = narrow[static_cast<std::size_t>(i)];
      to[i] = e.dtype == "F16" ? half_to_float(v) : std::bit_cast<float>(static_cast<std::uint32_t>(v) << 16);
    }
  }
  return out;
}

std::vector<std::int64_t> SafetensorsFile::read_i64(const std::string& name) const {
  const Entry& e = entry(name);
  std::vector<std::int64_t> out(static_cast<std::size_t>(e.shape.numel()));
  if (e.dtype == "I32") {
    std::vector<std::int32_t> narrow(out.size());
    file_->pread(std::as_writable_bytes(std::span(narrow)), e.begin);
    std::copy(narrow.begin(), narrow.end(), out.begin());
    return out;
  }
  require(e.dtype == "I64", ExitCode::data, "{}: tensor '{}' is {}; I64 and I32 are read", path_, name, e.dtype);
  file_->pread(std::as_writable_bytes(std::span(out)), e.begin);
  return out;
}

SafetensorsModel::SafetensorsModel(const Files& files, const std::string& path) : path_(path) {
  std::set<std::string> names;
  if (!files.is_directory(path)) {
    names.insert(path);
  } else if (files.exists(join_path(path, "model.safetensors"))) {
    names.insert(join_path(path, "model.safetensors"));
  } else {
    const std::string index = join_path(path, "model.safetensors.index.json");
    const Json json = parse_without_duplicates(read_file(files, index, kMaxHeader), index);
    require(json.is_object() && json.contains("weight_map") && json["weight_map"].is_object(), ExitCode::data,
            "{}: no weight_map", index);
    for (const auto& [tensor, file] : json["weight_map"].items()) {
      require(file.is_string() && file.get<std::string>().find('/') == std::string::npos, ExitCode::data,
              "{}: tensor '{}': bad file name", index, tensor);
      names.insert(join_path(path, file.get<std::string>()));
    }
  }
  for (const std::string& name : names) {
    files_.push_back(std::make_unique<SafetensorsFile>(files, name));
    for (const auto& [tensor, entry] : files_.back()->entries())
      require(where_.emplace(tensor, files_.back().get()).second, ExitCode::data, "{}: tensor '{}' is in two files",
              path, tensor);
  }
}

const SafetensorsFile& SafetensorsModel::file_of(const std::string& name) const {
  const auto it = where_.find(name);
  require(it != where_.end(), ExitCode::data, "{}: no tensor '{}'", path_, name);
  return *it->second;
}

std::vector<std::string> SafetensorsModel::names() const {
  std::vector<std::string> all;
  for (const auto& [name, file] : where_) all.push_back(name);
  return all;
}

}  // namespace dstrain
