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

enum class FileLock {
  granted,
  held,         // by another open file
  unsupported,  // the file system has no locks
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
  // Takes an advisory lock on the whole file, held until it is closed or the process ends. Files without locks of their
  // own grant it.
  virtual FileLock try_lock() { return FileLock::granted; }
  // Asks that later reads come from the device and not from this machine's memory. A hint; REQUIRES: synced.
  virtual void forget() const {}
};

// Files are created with mode 0640. Links are followed for reading only: a link in the place of a file to write is an
// error.
enum class OpenMode {
  read,
  create,   // must not exist
  replace,  // created or truncated
  append,   // created when absent; pwrite at size() by the caller
};

// What stands at a path, itself and not what a link points to.
struct FileStatus {
  enum class Kind { absent, regular, directory, link, other } kind = Kind::absent;
  std::uint64_t owner = 0;  // user id
  bool mine = true;         // the owner is this process's user
  double modified = 0;      // seconds since 1970, by the file system's clock
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
  // The default knows regular files and directories.
  virtual FileStatus status(const std::string& path) const;
};

const Files& system_files();

// Helpers on top of any Files.
std::string read_file(const Files& files, const std::string& path, std::uint64_t limit = 1ull << 32);
// Writes to a temporary beside `path`, syncs, renames over it, syncs the directory.
void write_file_atomically(const Files& files, const std::string& path, const std::string& text);
// make_directory, and what it made outlives a loss of power: the parents of new directories are synced.
void make_durable_directory(const Files& files, const std::string& path);
void remove_tree(const Files& files, const std::string& path);  // nothing when absent
std::string parent_path(const std::string& path);
std::string join_path(const std::string& a, const std::string& b);

}  // namespace dstrain
