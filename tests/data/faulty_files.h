#pragma once
// Files whose k-th changing call (write, truncate, sync) fails as a full disk does, and every one after it.

#include <cerrno>
#include <utility>

#include "lib/core/files.h"

namespace dstrain {

class FaultyFiles final : public Files {
 public:
  // `calls_left`: changing calls that succeed; it counts down.
  explicit FaultyFiles(int& calls_left) : left_(calls_left) {}

  std::unique_ptr<File> open(const std::string& path, OpenMode mode) const override {
    return std::make_unique<Faulty>(system_files().open(path, mode), left_);
  }
  void rename(const std::string& a, const std::string& b) const override { system_files().rename(a, b); }
  void remove(const std::string& path) const override { system_files().remove(path); }
  void make_directory(const std::string& path) const override { system_files().make_directory(path); }
  void sync_directory(const std::string& path) const override { system_files().sync_directory(path); }
  bool exists(const std::string& path) const override { return system_files().exists(path); }
  bool is_directory(const std::string& path) const override { return system_files().is_directory(path); }
  std::vector<std::string> list(const std::string& path) const override { return system_files().list(path); }
  std::uint64_t available(const std::string& path) const override { return system_files().available(path); }

 private:
  class Faulty final : public File {
   public:
    Faulty(std::unique_ptr<File> file, int& left) : file_(std::move(file)), left_(left) {}
    void pread(std::span<std::byte> into, std::uint64_t offset) const override { file_->pread(into, offset); }
    void pwrite(std::span<const std::byte> from, std::uint64_t offset) override {
      count();
      file_->pwrite(from, offset);
    }
    std::uint64_t size() const override { return file_->size(); }
    void truncate(std::uint64_t size) override {
      count();
      file_->truncate(size);
    }
    void sync() override {
      count();
      file_->sync();
    }
    void close() override { file_->close(); }

   private:
    void count() {
      if (left_-- <= 0) throw FileError(ExitCode::write, "the disk of this test is full", ENOSPC);
    }
    std::unique_ptr<File> file_;
    int& left_;
  };
  int& left_;
};

}  // namespace dstrain
