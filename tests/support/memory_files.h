#pragma once
// A file system in memory, for fuzzers: as many files as are wanted, at the speed of a map. Not thread-safe.

#include <cerrno>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "lib/core/files.h"

namespace dstrain::test {

class MemoryFiles final : public Files {
 public:
  using Bytes = std::shared_ptr<std::string>;

  void put(const std::string& path, std::string bytes) {
    files_[path] = std::make_shared<std::string>(std::move(bytes));
  }
  std::string get(const std::string& path) const { return *find(path); }

  std::unique_ptr<File> open(const std::string& path, OpenMode mode) const override {
    if (mode == OpenMode::read) return std::make_unique<Open>(find(path), path);
    if (mode == OpenMode::replace || !files_.contains(path)) files_[path] = std::make_shared<std::string>();
    return std::make_unique<Open>(files_[path], path);
  }
  void rename(const std::string& from, const std::string& to) const override {
    files_[to] = find(from);
    files_.erase(from);
  }
  void remove(const std::string& path) const override { files_.erase(path); }
  void make_directory(const std::string&) const override {}
  void sync_directory(const std::string&) const override {}
  bool exists(const std::string& path) const override { return files_.contains(path); }
  bool is_directory(const std::string& path) const override {
    const auto next = files_.lower_bound(path + "/");
    return next != files_.end() && next->first.starts_with(path + "/");
  }
  std::vector<std::string> list(const std::string& path) const override {
    std::vector<std::string> out;
    for (auto f = files_.lower_bound(path + "/"); f != files_.end() && f->first.starts_with(path + "/"); ++f)
      if (const std::string name =
              f->first.substr(path.size() + 1, f->first.find('/', path.size() + 1) - path.size() - 1);
          out.empty() || out.back() != name)
        out.push_back(name);
    return out;
  }
  std::uint64_t available(const std::string&) const override { return 1ull << 40; }

 private:
  class Open final : public File {
   public:
    Open(Bytes bytes, std::string path) : bytes_(std::move(bytes)), path_(std::move(path)) {}
    void pread(std::span<std::byte> into, std::uint64_t offset) const override {
      if (offset > bytes_->size() || into.size() > bytes_->size() - offset)
        throw FileError(ExitCode::data, path_ + ": read past its end", EIO);
      if (!into.empty()) std::memcpy(into.data(), bytes_->data() + offset, into.size());
    }
    void pwrite(std::span<const std::byte> from, std::uint64_t offset) override {
      if (bytes_->size() < offset + from.size()) bytes_->resize(static_cast<std::size_t>(offset) + from.size());
      if (!from.empty()) std::memcpy(bytes_->data() + offset, from.data(), from.size());
    }
    std::uint64_t size() const override { return bytes_->size(); }
    void truncate(std::uint64_t size) override { bytes_->resize(static_cast<std::size_t>(size)); }
    void sync() override {}
    void close() override {}

   private:
    Bytes bytes_;
    std::string path_;
  };
  const Bytes& find(const std::string& path) const {
    const auto found = files_.find(path);
    if (found == files_.end()) throw FileError(ExitCode::data, path + ": no such file", ENOENT);
    return found->second;
  }
  mutable std::map<std::string, Bytes> files_;
};

}  // namespace dstrain::test
