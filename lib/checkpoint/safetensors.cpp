#include "lib/checkpoint/safetensors.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>
#include <tuple>
#include <utility>

#include "lib/checkpoint/untrusted_json.h"
#include "lib/core/dtype.h"
#include "lib/core/small_floats.h"

namespace dstrain {

namespace {

constexpr std::uint64_t kMaxHeader = 100'000'000;  // bytes, as the format's own reader
constexpr std::size_t kLongestName = 1024;
constexpr std::size_t kPiece = 1 << 20;  // elements of 16 or 8 bits converted at a time

// The header's tensors, checked as they come; offsets are those of the header.
class HeaderReader final : public JsonReader {
 public:
  HeaderReader(const std::string& file, std::uint64_t header, std::uint64_t data)
      : file_(file), base_(header), data_(data) {}

  std::map<std::string, SafetensorsFile::Entry> entries;

  void text(const std::string& value) override {
    if (depth() == 2 && path()[0] == "__metadata__") return;
    rule(depth() == 2 && path()[1] == "dtype", "a text is only its dtype");
    entry_.dtype = value;
    rule(file_dtype_bytes(value) != 0, "unknown dtype " + quote(value));
  }
  void number(std::uint64_t value) override {
    if (depth() == 3 && path()[1] == "shape") {
      rule(element() < Shape::kMaxRank, "a shape of more than 6 dimensions");
      rule(value <= 1ull << 40, format("a dimension of {}", value));
      entry_.shape.push_back(static_cast<Index>(value));
      return;
    }
    rule(depth() == 3 && path()[1] == "data_offsets" && element() < 2, format("no place for the number {}", value));
    (element() == 0 ? entry_.begin : entry_.end) = value;
    ++offsets_;
  }
  void other() override { rule(false, "a value that is neither a text nor a whole number"); }
  void opened(bool list) override {
    if (depth() == 0) {
      require(!list, ExitCode::data, "{}: the header is no object", file_);
    } else if (depth() == 1) {
      rule(!list, "no object");
      rule(!path()[0].empty() && path()[0].size() <= kLongestName, format("a name of {} bytes", path()[0].size()));
      for (const char c : path()[0])
        rule(static_cast<unsigned char>(c) >= ' ' && c != 127, "a name with a control character");
      entry_ = {};
      offsets_ = 0;
      shape_ = false;
    } else {
      const bool shape = path()[1] == "shape";
      rule(list && depth() == 2 && path()[0] != "__metadata__" && (shape || path()[1] == "data_offsets"),
           "no list or object belongs at " + quote(path()[1]));
      shape_ = shape_ || shape;
    }
  }
  void closed() override {
    if (depth() != 1 || path()[0] == "__metadata__") return;
    rule(!entry_.dtype.empty() && shape_ && offsets_ == 2, "dtype, shape or data_offsets are missing");
    std::uint64_t bytes = file_dtype_bytes(entry_.dtype);
    for (const Index n : entry_.shape) {
      rule(n == 0 || bytes <= (1ull << 60) / static_cast<std::uint64_t>(n), "more elements than can be");
      bytes *= static_cast<std::uint64_t>(n);
    }
    rule(entry_.begin <= entry_.end && entry_.end <= data_,
         format("data_offsets {} to {} in a file with {} bytes of data", entry_.begin, entry_.end, data_));
    rule(entry_.end - entry_.begin == bytes, format("data_offsets {} to {} for {} bytes of {} {}", entry_.begin,
                                                    entry_.end, bytes, entry_.dtype, entry_.shape.to_string()));
    entry_.begin += base_;
    entry_.end += base_;
    entries.emplace(path()[0], std::move(entry_));
  }

 private:
  std::size_t depth() const { return path().size(); }
  void rule(bool ok, const std::string& what) const {
    require(ok, ExitCode::data, "{}: tensor {}: {}", file_, path().empty() ? "''" : quote(path()[0]), what);
  }

  const std::string& file_;
  std::uint64_t base_, data_;
  SafetensorsFile::Entry entry_;
  int offsets_ = 0;
  bool shape_ = false;
};

// Elements of 16 or 8 bits to float32.
void widen(const std::string& dtype, std::span<const std::byte> from, float* to) {
  if (dtype == "F8_E4M3") {
    for (std::size_t i = 0; i < from.size(); ++i) to[i] = e4m3_to_float(static_cast<std::uint8_t>(from[i]));
    return;
  }
  const bool half = dtype == "F16";
  for (std::size_t i = 0; 2 * i < from.size(); ++i) {
    std::uint16_t v = 0;
    std::memcpy(&v, from.data() + 2 * i, 2);
    to[i] = half ? half_to_float(v) : std::bit_cast<float>(static_cast<std::uint32_t>(v) << 16);
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
  const std::uint64_t base = 8 + header_size;
  HeaderReader header(path_, base, size - base);
  read_json(text, path_, header);
  entries_ = std::move(header.entries);

  std::vector<std::tuple<std::uint64_t, std::uint64_t, const std::string*>> ranges;
  for (const auto& [name, entry] : entries_) ranges.emplace_back(entry.begin, entry.end, &name);
  std::sort(ranges.begin(), ranges.end());
  std::uint64_t at = base;
  for (const auto& [begin, end, name] : ranges) {
    require(begin == at, ExitCode::data, "{}: tensor {} begins at byte {}: it {} byte {}", path_, quote(*name), begin,
            begin < at ? "overlaps with what ends at" : "leaves a hole from", at);
    at = end;
  }
  require(at == size, ExitCode::data, "{}: {} bytes after the last tensor", path_, size - at);
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
  entry(name);
  std::vector<float> out(static_cast<std::size_t>(extent.numel()));
  read_f32(name, offset, extent, out);
  return out;
}

void SafetensorsFile::read_f32(const std::string& name, const Shape& offset, const Shape& extent,
                               std::span<float> out) const {
  const Entry& e = entry(name);
  const int rank = e.shape.rank();
  require(rank == extent.rank() && (rank == 1 || rank == 2), ExitCode::data, "{}: tensor '{}' has shape {}", path_,
          name, e.shape.to_string());
  for (int i = 0; i < rank; ++i)
    require(offset[i] >= 0 && extent[i] >= 0 && offset[i] + extent[i] <= e.shape[i], ExitCode::data,
            "{}: tensor '{}' of shape {} has no part of {} at {}", path_, name, e.shape.to_string(), extent.to_string(),
            offset.to_string());
  const bool wide = e.dtype == "F32";
  require(wide || e.dtype == "F16" || e.dtype == "BF16" || e.dtype == "F8_E4M3", ExitCode::data,
          "{}: tensor '{}' is {}; F32, F16, BF16 and F8_E4M3 are read", path_, name, e.dtype);
  const Index rows = rank == 2 ? extent[0] : 1, columns = extent[rank - 1];
  check(static_cast<Index>(out.size()) == rows * columns, "{}: {} elements into {}", name, rows * columns, out.size());
  const Index width = e.shape[rank - 1], first = offset[rank - 1], top = rank == 2 ? offset[0] : 0;
  const std::uint64_t element = file_dtype_bytes(e.dtype);
  if (out.empty()) return;
  // Whole rows are one span.
  const Index spans = columns == width ? 1 : rows;
  const std::size_t span_elements = out.size() / static_cast<std::size_t>(spans);
  std::vector<std::byte> narrow(wide ? 0 : std::min(kPiece, span_elements) * element);
  for (Index r = 0; r < spans; ++r) {
    const std::uint64_t at = e.begin + static_cast<std::uint64_t>((top + r) * width + first) * element;
    const std::span<float> to = out.subspan(static_cast<std::size_t>(r) * span_elements, span_elements);
    if (wide) {
      file_->pread(std::as_writable_bytes(to), at);
      continue;
    }
    for (std::size_t i = 0; i < to.size(); i += kPiece) {
      const std::span<std::byte> part(narrow.data(), std::min(kPiece, to.size() - i) * element);
      file_->pread(part, at + i * element);
      widen(e.dtype, part, to.data() + i);
    }
  }
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

SafetensorsWriter::SafetensorsWriter(const Files& files, const std::string& path, std::vector<FileTensor> tensors)
    : path_(path), file_(files.open(path, OpenMode::create)), tensors_(std::move(tensors)) {
  // Of one size the library has BF16 before F16.
  std::sort(tensors_.begin(), tensors_.end(), [](const FileTensor& a, const FileTensor& b) {
    const auto key = [](const FileTensor& t) {
      return std::make_tuple(-static_cast<int>(file_dtype_bytes(t.dtype)), t.dtype);
    };
    return key(a) != key(b) ? key(a) < key(b) : a.name < b.name;
  });
  nlohmann::ordered_json header{{"__metadata__", {{"format", "pt"}}}};
  std::string text = header.dump();
  text.pop_back();  // members follow; one by one, since an ordered object looks through all of its keys
  std::uint64_t end = 0;
  for (const FileTensor& t : tensors_) {
    check(t.dtype == "F32" || t.dtype == "F16" || t.dtype == "BF16", "{}: {} of {}", path_, t.dtype, t.name);
    const std::uint64_t begin = end;
    end += static_cast<std::uint64_t>(t.shape.numel()) * file_dtype_bytes(t.dtype);
    const nlohmann::ordered_json member{
        {"dtype", t.dtype}, {"shape", t.shape.to_vector()}, {"data_offsets", {begin, end}}};
    text.append(",").append(nlohmann::json(t.name).dump()).append(":").append(member.dump());
  }
  text.append("}");
  text.resize((text.size() + 7) / 8 * 8, ' ');
  std::array<std::byte, 8> size{};
  for (std::size_t i = 0; i < 8; ++i) size[i] = static_cast<std::byte>(text.size() >> 8 * i & 255);
  file_->pwrite(size, 0);
  file_->pwrite(std::as_bytes(std::span(text)), 8);
  at_ = 8 + text.size();
}

void SafetensorsWriter::append(std::span<const float> values) {
  while (!values.empty()) {
    check(tensor_ < tensors_.size(), "{}: more elements than the tensors have", path_);
    const FileTensor& t = tensors_[tensor_];
    const Index left = t.shape.numel() - element_;
    if (left == 0) {
      ++tensor_;
      element_ = 0;
      continue;
    }
    const std::size_t n = std::min({values.size(), static_cast<std::size_t>(left), kPiece});
    std::span<const std::byte> bytes = std::as_bytes(values.first(n));
    if (t.dtype != "F32") {
      narrow_.resize(n);
      for (std::size_t i = 0; i < n; ++i)
        narrow_[i] = t.dtype == "BF16" ? bfloat16(values[i]).bits : float_to_half(values[i]);
      if (t.dtype == "F16")
        for (std::size_t i = 0; i < n; ++i)
          require((narrow_[i] & 0x7fff) != 0x7c00, ExitCode::data, "tensor '{}' holds {}, more than float16 reaches",
                  t.name, values[i]);
      bytes = std::as_bytes(std::span(narrow_));
    }
    file_->pwrite(bytes, at_);
    at_ += bytes.size();
    element_ += static_cast<Index>(n);
    values = values.subspan(n);
  }
}

std::uint64_t SafetensorsWriter::finish() {
  while (tensor_ < tensors_.size() && element_ == tensors_[tensor_].shape.numel()) {
    ++tensor_;
    element_ = 0;
  }
  check(tensor_ == tensors_.size(), "{}: elements of {} are missing", path_,
        tensor_ < tensors_.size() ? tensors_[tensor_].name : "");
  file_->sync();
  file_->close();
  return at_;
}

}  // namespace dstrain
