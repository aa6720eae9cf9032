#pragma once
// Files that hand every call on to others, for tests that change one or two of them.

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "lib/core/files.h"

namespace dstrain::test {

class ForwardingFile : public File {
 public:
  explicit ForwardingFile(std::unique_ptr<File> real) : real_(std::move(real)) {}
  void pread(std::span<std::byte> into, std::uint64_t at) const override { real_->pread(into, at); }
  void pwrite(std::span<const std::byte> from, std::uint64_t at) override { real_->pwrite(from, at); }
  std::uint64_t size() const override { return real_->size(); }
  void truncate(std::uint64_t size) override { real_->truncate(size); }
  void sync() override { real_->sync(); }
  void close() override { real_->close(); }
  FileLock try_lock() override { return real_->try_lock(); }
  void forget() const override { real_->forget(); }

 protected:
  std::unique_ptr<File> real_;
};

class ForwardingFiles : public Files {
 public:
  explicit ForwardingFiles(const Files& real = system_files()) : real_(real) {}
  std::unique_ptr<File> open(const std::string& path, OpenMode mode) const override { return real_.open(path, mode); }
  void rename(const std::string& from, const std::string& to) const override { real_.rename(from, to); }
  void remove(const std::string& path) const override { real_.remove(path); }
  void make_directory(const std::string& path) const override { real_.make_directory(path); }
  void sync_directory(const std::string& path) const override { real_.sync_directory(path); }
  bool exists(const std::string& path) const override { return real_.exists(path); }
  bool is_directory(const std::string& path) const override { return real_.is_directory(path); }
  std::vector<std::string> list(const std::string& path) const override { return real_.list(path); }
  std::uint64_t available(const std::string& path) const override { return real_.available(path); }
  FileStatus status(const std::string& path) const override { return real_.status(path); }

 protected:
  const Files& real_;
};

}  // namespace dstrain::test
