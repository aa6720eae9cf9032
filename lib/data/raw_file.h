#pragma once
// Arrays of numbers in plain files, read and written through a buffer.

#include <algorithm>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "lib/core/files.h"
#include "lib/core/shape.h"

namespace dstrain {

// Writes PATH.partial and renames it to PATH when it is complete. Throws Error{write} when PATH exists.
class RawWriter {
 public:
  RawWriter(const Files& files, std::string path) : files_(files), path_(std::move(path)) {
    require(!files_.exists(path_), ExitCode::write, "{} exists; remove it, or choose another prefix", path_);
    files_.make_directory(parent_path(path_));
    file_ = files_.open(path_ + ".partial", OpenMode::replace);
  }

  template <class T>
  void put(std::span<const T> values) {
    const auto bytes = std::as_bytes(values);
    buffer_.insert(buffer_.end(), bytes.begin(), bytes.end());
    if (buffer_.size() >= kBuffer) flush();
  }
  template <class T>
  void put(const T& value) {
    put(std::span<const T>(&value, 1));
  }
  void finish() {
    flush();
    file_->sync();
    file_->close();
    files_.rename(path_ + ".partial", path_);
    files_.sync_directory(parent_path(path_));
  }

 private:
  static constexpr std::size_t kBuffer = 1 << 20;
  void flush() {
    file_->pwrite(buffer_, at_);
    at_ += buffer_.size();
    buffer_.clear();
  }
  const Files& files_;
  std::string path_;
  std::unique_ptr<File> file_;
  std::vector<std::byte> buffer_;
  std::uint64_t at_ = 0;
};

// A file's bytes by ranges that are checked against its size.
class RawReader {
 public:
  RawReader(const Files& files, const std::string& path) : path_(path), file_(files.open(path, OpenMode::read)) {
    size_ = file_->size();
  }

  const std::string& path() const { return path_; }
  std::uint64_t size() const { return size_; }
  // Whether `count` elements of `width` bytes fit behind `offset`, whatever the numbers are.
  bool holds(std::uint64_t offset, std::uint64_t count, std::uint64_t width) const {
    return offset <= size_ && count <= (size_ - offset) / width;
  }
  void read(std::span<std::byte> into, std::uint64_t offset) const { file_->pread(into, offset); }
  template <class T>
  T number(std::uint64_t offset) const {
    T value;
    read(std::as_writable_bytes(std::span(&value, 1)), offset);
    return value;
  }

 private:
  std::string path_;
  std::unique_ptr<File> file_;
  std::uint64_t size_ = 0;
};

// An array within a file, read in order or nearly so. REQUIRES: the file holds it.
template <class T>
class RawArray {
 public:
  RawArray(const RawReader& file, std::uint64_t offset, std::uint64_t count)
      : file_(file), offset_(offset), count_(count) {}

  std::uint64_t size() const { return count_; }
  T operator[](std::uint64_t i) {
    if (i < first_ || i >= first_ + held_.size()) {
      first_ = i;
      held_.resize(static_cast<std::size_t>(std::min<std::uint64_t>(kHeld, count_ - i)));
      file_.read(std::as_writable_bytes(std::span(held_)), offset_ + i * sizeof(T));
    }
    return held_[static_cast<std::size_t>(i - first_)];
  }

 private:
  static constexpr std::uint64_t kHeld = 1 << 15;
  const RawReader& file_;
  std::uint64_t offset_, count_, first_ = 0;
  std::vector<T> held_;
};

}  // namespace dstrain
