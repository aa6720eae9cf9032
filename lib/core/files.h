#pragma once
// The file system, behind an interface so that tests can fail the k-th call or drop unsynced data. Every read and write
// of the product goes through it. Errors are thrown as FileError, with path, operation and errno in the message.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "lib/core/errors.h"

namespace dstrain {

// code() is ExitCode::write for operations that change something, ExitCode::data for the others.
class FileError : public Error {
 public:
  FileError(ExitCode code, const std::string& message, int error_number) : Error(code, message), errno_(error_number) {}
  int error_number() const { return errno_; }

 private:
  int errno_;
};

// An open regular file. Closed by the destructor; call close() to see errors. Not thread-safe, but for pread.
class File {
 public:
  virtual ~File() = default;
  // Reads exactly into.size() bytes at `offset`; throws when the file is shorter.
  virtual void pread(std::span<std::byte> into, std::uint64_t offset) const = 0;
  // Writes all bytes (loops over short writes and EINTR).
  virtual void pwrite(std::span<const std::byte> from, std::uint64_t offset) = 0;
  virtual std::uint64_t size() const = 0;
  virtual void truncate(std::uint64_t size) = 0;
  virtual void sync() = 0;  // fsync
  virtual void close() = 0;
  // Takes an advisory lock on the whole file, held until it is closed or the process ends; false when another open file
  // holds it. Files without locks of their own grant it.
  virtual bool try_lock() { return true; }
};

enum class OpenMode {
  read,
  create,   // must not exist; mode 0640, O_NOFOLLOW
  replace,  // created or truncated
  append,   // created when absent; pwrite at size() by the caller
};

class Files {
 public:
  virtual ~Files() = default;
  virtual std::unique_ptr<File> open(const std::string& path, OpenMode mode) const = 0;
  virtual void rename(const std::string& from, const std::string& to) const = 0;  // atomic; replaces a file
  virtual void remove(const std::string& path) const = 0;                         // a file or an empty directory
  virtual void make_directory(const std::string& path) const = 0;                 // and its parents; may exist
  virtual void sync_directory(const std::string& path) const = 0;
  virtual bool exists(const std::string& path) const = 0;
  virtual bool is_directory(const std::string& path) const = 0;
  virtual std::vector<std::string> list(const std::string& path) const = 0;  // names, sorted, without . and ..
  virtual std::uint64_t available(const std::string& path) const = 0;        // bytes that this user may still write
};

const Files& system_files();

// Helpers on top of any Files.
std::string read_file(const Files& files, const std::string& path, std::uint64_t limit = 1ull << 32);
// Writes to a temporary beside `path`, syncs, renames over it, syncs the directory.
void write_file_atomically(const Files& files, const std::string& path, const std::string& text);
void remove_tree(const Files& files, const std::string& path);  // nothing when absent
std::string parent_path(const std::string& path);
std::string join_path(const std::string& a, const std::string& b);

}  // namespace dstrain
