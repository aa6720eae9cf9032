#pragma once
// Files of which the n-th call fails.

#include <atomic>
#include <cerrno>
#include <cstring>
#include <string>
#include <utility>

#include "tests/support/forwarding_files.h"

namespace dstrain::test {

struct Fault {
  int at = 0;             // the call that fails, counted from 1; 0: none does
  bool sticky = false;    // all later ones fail too, as on a full disk
  int error = ENOSPC;     // errno
  bool partial = false;   // a write that fails has written its first half
  std::string within;     // only calls on paths that hold this text are counted
  std::string operation;  // only this one is counted: "open", "read", "write", ...; "change": write, truncate, sync
  int count = 1;          // calls that fail, one after the other
  bool unknown = false;   // what is thrown is no Error
};

// A full disk: `changes` of writes, truncations and syncs succeed, and none after them.
inline Fault full_disk(int changes) { return {.at = changes + 1, .sticky = true, .operation = "change"}; }

class FaultyFiles final : public ForwardingFiles {
 public:
  // Calls are counted over all operations and threads, but for queries that cannot fail.
  explicit FaultyFiles(const Files& real, Fault fault = {}) : ForwardingFiles(real), fault_(std::move(fault)) {}
  int calls() const { return calls_; }
  bool failed() const { return failed_; }
  // Whether a call failed without which bytes may be missing on the disk: whoever goes on over it tells a lie.
  bool lost_bytes() const { return lost_bytes_; }

  std::unique_ptr<File> open(const std::string& path, OpenMode mode) const override {
    count("open", path, mode == OpenMode::read ? ExitCode::data : ExitCode::write);
    return std::make_unique<FaultyFile>(*this, path, real_.open(path, mode));
  }
  void rename(const std::string& from, const std::string& to) const override {
    count("rename", from);
    real_.rename(from, to);
  }
  void remove(const std::string& path) const override {
    count("remove", path);
    real_.remove(path);
  }
  void make_directory(const std::string& path) const override {
    count("make_directory", path);
    real_.make_directory(path);
  }
  void sync_directory(const std::string& path) const override {
    count("sync_directory", path);
    real_.sync_directory(path);
  }
  std::vector<std::string> list(const std::string& path) const override {
    count("list", path, ExitCode::data);
    return real_.list(path);
  }
  std::uint64_t available(const std::string& path) const override {
    count("available", path);
    return real_.available(path);
  }

 private:
  class FaultyFile final : public ForwardingFile {
   public:
    FaultyFile(const FaultyFiles& owner, std::string path, std::unique_ptr<File> real)
        : ForwardingFile(std::move(real)), owner_(owner), path_(std::move(path)) {}
    void pread(std::span<std::byte> into, std::uint64_t offset) const override {
      owner_.count("read", path_, ExitCode::data);
      real_->pread(into, offset);
    }
    void pwrite(std::span<const std::byte> from, std::uint64_t offset) override {
      try {
        owner_.count("write", path_);
      } catch (const FileError&) {
        if (owner_.fault_.partial && from.size() > 1) real_->pwrite(from.first(from.size() / 2), offset);
        throw;
      }
      real_->pwrite(from, offset);
    }
    std::uint64_t size() const override {
      owner_.count("size", path_, ExitCode::data);
      return real_->size();
    }
    void truncate(std::uint64_t size) override {
      owner_.count("truncate", path_);
      real_->truncate(size);
    }
    void sync() override {
      owner_.count("sync", path_);
      real_->sync();
    }
    void close() override {
      owner_.count("close", path_);
      real_->close();
    }

   private:
    const FaultyFiles& owner_;
    std::string path_;
  };

  bool counts(const std::string& operation, const std::string& path) const {
    if (!fault_.within.empty() && path.find(fault_.within) == path.npos) return false;
    if (fault_.operation == "change") return operation == "write" || operation == "truncate" || operation == "sync";
    return fault_.operation.empty() || fault_.operation == operation;
  }
  void count(const char* what, const std::string& path, ExitCode code = ExitCode::write) const {
    if (!counts(what, path)) return;
    const int call = ++calls_;
    if (fault_.at == 0 || call < fault_.at || (!fault_.sticky && call >= fault_.at + fault_.count)) return;
    failed_ = true;
    for (const char* const lossy : {"write", "truncate", "sync", "close", "sync_directory"})
      if (std::strcmp(what, lossy) == 0) lost_bytes_ = true;
    const std::string text =
        format("injected: cannot {} {} (call {}): {}", what, path, call, std::strerror(fault_.error));
    if (fault_.unknown) throw std::runtime_error(text);
    throw FileError(code, text, fault_.error);
  }

  Fault fault_;
  mutable std::atomic<int> calls_{0};
  mutable std::atomic<bool> failed_{false}, lost_bytes_{false};
};

}  // namespace dstrain::test
