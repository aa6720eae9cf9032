#include "lib/observe/tensorboard.h"

#include <algorithm>
#include <array>
#include <bit>
#include <charconv>
#include <cmath>

namespace dstrain {

namespace {

constexpr std::string_view kPrefix = "events.out.tfevents.";
static_assert(std::endian::native == std::endian::little);

constexpr std::array<std::uint32_t, 256> kCrcTable = [] {
  std::array<std::uint32_t, 256> table{};
  for (std::uint32_t i = 0; i < 256; ++i) {
    std::uint32_t c = i;
    for (int bit = 0; bit < 8; ++bit) c = c & 1 ? c >> 1 ^ 0x82F63B78u : c >> 1;
    table[i] = c;
  }
  return table;
}();

template <class T>
void put_raw(std::string& out, T value) {
  out.append(reinterpret_cast<const char*>(&value), sizeof(T));
}

// Protocol buffers: a key is field << 3 | wire type (0 varint, 1 eight bytes, 2 length and bytes, 5 four bytes).
void put_varint(std::string& out, std::uint64_t v) {
  for (; v >= 0x80; v >>= 7) out += static_cast<char>(v | 0x80);
  out += static_cast<char>(v);
}
void put_key(std::string& out, unsigned field, unsigned wire) { put_varint(out, field << 3 | wire); }
void put_int(std::string& out, unsigned field, std::int64_t v) {
  put_key(out, field, 0);
  put_varint(out, static_cast<std::uint64_t>(v));
}
void put_double(std::string& out, unsigned field, double v) {
  put_key(out, field, 1);
  put_raw(out, v);
}
void put_float(std::string& out, unsigned field, float v) {
  put_key(out, field, 5);
  put_raw(out, v);
}
void put_bytes(std::string& out, unsigned field, std::string_view v) {
  put_key(out, field, 2);
  put_varint(out, v.size());
  out += v;
}

// Event: wall_time 1, step 2.
std::string event_at(double wall, std::int64_t step) {
  std::string event;
  put_double(event, 1, wall);
  put_int(event, 2, step);
  return event;
}

std::uint32_t masked(std::string_view bytes) {
  const std::uint32_t crc = crc32c(bytes);
  return (crc >> 15 | crc << 17) + 0xA282EAD8u;
}

// A name after all others: the time, or that of the last file should the clock have gone back, and a number.
std::string next_name(const Files& files, const std::string& directory, std::int64_t wall) {
  std::int64_t stamp = wall;
  int count = 0;
  for (const std::string& name : files.list(directory)) {
    if (!name.starts_with(kPrefix)) continue;
    ++count;
    std::int64_t other = 0;
    std::from_chars(name.data() + kPrefix.size(), name.data() + name.size(), other);
    stamp = std::max(stamp, other);
  }
  return format("{}{:010}.{:06}", kPrefix, stamp, count);
}

}  // namespace

std::uint32_t crc32c(std::string_view bytes) {
  std::uint32_t crc = ~0u;
  for (const char c : bytes) crc = crc >> 8 ^ kCrcTable[(crc ^ static_cast<unsigned char>(c)) & 0xFF];
  return ~crc;
}

TensorBoardFile::TensorBoardFile(const Files& files, const Clock& clock, const std::string& directory,
                                 std::int64_t last_step)
    : clock_(clock), wall_begin_(static_cast<double>(clock.wall())), begin_(clock.now()) {
  files.make_directory(directory);
  path_ = join_path(directory, next_name(files, directory, clock.wall()));
  file_ = files.open(path_, OpenMode::create);
  std::string version = event_at(wall(), 0);
  put_bytes(version, 3, "brain.Event:2");  // file_version
  append(version);
  std::string start = event_at(wall(), last_step + 1), session;
  put_int(session, 1, 1);        // SessionLog.status: START
  put_bytes(start, 7, session);  // session_log
  append(start);
}

double TensorBoardFile::wall() const { return wall_begin_ + (clock_.now() - begin_); }

void TensorBoardFile::append(const std::string& event) {
  std::string record;
  put_raw(record, static_cast<std::uint64_t>(event.size()));
  put_raw(record, masked(record));
  record += event;
  put_raw(record, masked(event));
  try {
    file_->pwrite(std::as_bytes(std::span(record)), end_);
    end_ += record.size();
  } catch (const std::exception&) {
    ++dropped_;
  }
}

void TensorBoardFile::write(std::int64_t step, std::span<const Scalar> values) {
  std::string summary;
  for (const Scalar& s : values) {
    std::string value;
    put_bytes(value, 1, s.name);                       // Summary.Value.tag
    put_float(value, 2, static_cast<float>(s.value));  // simple_value
    put_bytes(summary, 1, value);
  }
  std::string event = event_at(wall(), step);
  put_bytes(event, 5, summary);
  append(event);
}

}  // namespace dstrain
