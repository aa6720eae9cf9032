#include "lib/core/files.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

namespace dstrain {

namespace {

[[noreturn]] void fail_file(ExitCode code, const char* what, const std::string& path) {
  const int e = errno;
  // The machine cannot run this; nothing is wrong with the file.
  if (e == EMFILE || e == ENFILE || e == ENOMEM)
    throw FileError(ExitCode::device,
                    format("cannot {} {}: {}{}", what, path, std::strerror(e), e == EMFILE ? "; see ulimit -n" : ""),
                    e);
  throw FileError(code, format("cannot {} {}: {}", what, path, std::strerror(e)), e);
}

class PosixFile final : public File {
 public:
  PosixFile(std::string path, int fd) : path_(std::move(path)), fd_(fd) {}
  ~PosixFile() override {
    if (fd_ >= 0) ::close(fd_);
  }

  void pread(std::span<std::byte> into, std::uint64_t offset) const override {
    while (!into.empty()) {
      const ssize_t n =
          ::pread(fd_, into.data(), std::min<std::size_t>(into.size(), 1u << 30), static_cast<off_t>(offset));
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) fail_file(ExitCode::data, "read", path_);
      if (n == 0)
        throw FileError(ExitCode::data,
                        format("cannot read {}: it ends at byte {}, {} more expected", path_, offset, into.size()), 0);
      into = into.subspan(static_cast<std::size_t>(n));
      offset += static_cast<std::uint64_t>(n);
    }
  }

  void pwrite(std::span<const std::byte> from, std::uint64_t offset) override {
    while (!from.empty()) {
      const ssize_t n =
          ::pwrite(fd_, from.data(), std::min<std::size_t>(from.size(), 1u << 30), static_cast<off_t>(offset));
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) fail_file(ExitCode::write, "write", path_);
      from = from.subspan(static_cast<std::size_t>(n));
      offset += static_cast<std::uint64_t>(n);
    }
  }

  std::uint64_t size() const override {
    struct stat s {};
    if (fstat(fd_, &s) != 0) fail_file(ExitCode::data, "stat", path_);
    return static_cast<std::uint64_t>(s.st_size);
  }
  void truncate(std::uint64_t size) override {
    if (ftruncate(fd_, static_cast<off_t>(size)) != 0) fail_file(ExitCode::write, "truncate", path_);
  }
  void sync() override {
    if (fsync(fd_) != 0) fail_file(ExitCode::write, "sync", path_);
  }
  void close() override {
    const int fd = std::exchange(fd_, -1);
    if (fd >= 0 && ::close(fd) != 0) fail_file(ExitCode::write, "close", path_);
  }
  FileLock try_lock() override {
    if (flock(fd_, LOCK_EX | LOCK_NB) == 0) return FileLock::granted;
    if (errno == EWOULDBLOCK) return FileLock::held;
    if (errno == ENOTSUP || errno == EOPNOTSUPP || errno == ENOSYS || errno == ENOLCK || errno == EINVAL)
      return FileLock::unsupported;
    fail_file(ExitCode::write, "lock", path_);
  }
  void forget() const override { posix_fadvise(fd_, 0, 0, POSIX_FADV_DONTNEED); }

 private:
  std::string path_;
  int fd_;
};

class SystemFiles final : public Files {
 public:
  std::unique_ptr<File> open(const std::string& path, OpenMode mode) const override {
    int flags = O_CLOEXEC;
    switch (mode) {
      case OpenMode::read:
        flags |= O_RDONLY | O_NONBLOCK;  // a FIFO without a writer is refused below, not waited for
        break;
      case OpenMode::create:
        flags |= O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW;
        break;
      case OpenMode::replace:
        flags |= O_RDWR | O_CREAT | O_TRUNC | O_NOFOLLOW;
        break;
      case OpenMode::append:
        flags |= O_RDWR | O_CREAT | O_NOFOLLOW;
        break;
    }
    const int fd = ::open(path.c_str(), flags, 0640);
    if (fd < 0) {
      if (errno == ELOOP && mode != OpenMode::read)
        throw FileError(ExitCode::write, format("cannot create {}: it is a link, which is not followed", path), ELOOP);
      if (mode == OpenMode::read) fail_file(ExitCode::data, "open", path);
      fail_file(ExitCode::write, "create", path);
    }
    struct stat s {};
    if (fstat(fd, &s) == 0 && S_ISDIR(s.st_mode)) {
      ::close(fd);
      errno = EISDIR;
      fail_file(mode == OpenMode::read ? ExitCode::data : ExitCode::write, "open", path);
    }
    if (mode == OpenMode::read && !S_ISREG(s.st_mode)) {
      ::close(fd);
      throw FileError(ExitCode::data, format("cannot open {}: not a regular file", path), EINVAL);
    }
    return std::make_unique<PosixFile>(path, fd);
  }

  void rename(const std::string& from, const std::string& to) const override {
    if (::rename(from.c_str(), to.c_str()) != 0) fail_file(ExitCode::write, ("rename to " + to + ":").c_str(), from);
  }
  void remove(const std::string& path) const override {
    if (::remove(path.c_str()) != 0) fail_file(ExitCode::write, "remove", path);
  }
  void make_directory(const std::string& path) const override {
    if (path.empty() || is_directory(path)) return;
    make_directory(parent_path(path));
    if (mkdir(path.c_str(), 0750) != 0 && errno != EEXIST) fail_file(ExitCode::write, "create directory", path);
    if (!is_directory(path)) {
      errno = ENOTDIR;
      fail_file(ExitCode::write, "create directory", path);
    }
  }
  void sync_directory(const std::string& path) const override {
    const int fd = ::open(path.empty() ? "." : path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) fail_file(ExitCode::write, "open directory", path);
    const int rc = fsync(fd);
    const int e = errno;
    ::close(fd);
    errno = e;
    if (rc != 0) fail_file(ExitCode::write, "sync directory", path);
  }
  bool exists(const std::string& path) const override {
    struct stat s {};
    return lstat(path.c_str(), &s) == 0;
  }
  bool is_directory(const std::string& path) const override {
    struct stat s {};
    return stat(path.c_str(), &s) == 0 && S_ISDIR(s.st_mode);
  }
  std::vector<std::string> list(const std::string& path) const override {
    DIR* d = opendir(path.c_str());
    if (!d) fail_file(ExitCode::data, "list", path);
    std::vector<std::string> names;
    while (const dirent* e = readdir(d)) {
      const std::string name = e->d_name;
      if (name != "." && name != "..") names.push_back(name);
    }
    closedir(d);
    std::sort(names.begin(), names.end());
    return names;
  }
  std::uint64_t available(const std::string& path) const override {
    struct statvfs s {};
    if (statvfs(path.c_str(), &s) != 0) fail_file(ExitCode::write, "find the free space of", path);
    return static_cast<std::uint64_t>(s.f_bavail) * s.f_frsize;
  }
  FileStatus status(const std::string& path) const override {
    struct stat s {};
    if (lstat(path.c_str(), &s) != 0) {
      if (errno == ENOENT || errno == ENOTDIR) return {};
      fail_file(ExitCode::data, "stat", path);
    }
    using Kind = FileStatus::Kind;
    return {.kind = S_ISREG(s.st_mode)   ? Kind::regular
                    : S_ISDIR(s.st_mode) ? Kind::directory
                    : S_ISLNK(s.st_mode) ? Kind::link
                                         : Kind::other,
            .owner = s.st_uid,
            .mine = s.st_uid == geteuid(),
            .modified = static_cast<double>(s.st_mtim.tv_sec) + 1e-9 * static_cast<double>(s.st_mtim.tv_nsec)};
  }
};

}  // namespace

FileStatus Files::status(const std::string& path) const {
  using Kind = FileStatus::Kind;
  return {.kind = is_directory(path) ? Kind::directory : exists(path) ? Kind::regular : Kind::absent};
}

const Files& system_files() {
  static const SystemFiles files;
  return files;
}

std::string read_file(const Files& files, const std::string& path, std::uint64_t limit) {
  const auto file = files.open(path, OpenMode::read);
  const std::uint64_t size = file->size();
  if (size > limit)
    throw FileError(ExitCode::data, format("{}: {} bytes, at most {} are accepted", path, size, limit), 0);
  std::string text(size, '\0');
  file->pread(std::as_writable_bytes(std::span(text)), 0);
  return text;
}

void write_file_atomically(const Files& files, const std::string& path, const std::string& text) {
  const std::string temporary = path + ".tmp";
  auto file = files.open(temporary, OpenMode::replace);
  file->pwrite(std::as_bytes(std::span(text)), 0);
  file->sync();
  file->close();
  files.rename(temporary, path);
  files.sync_directory(parent_path(path));
}

void make_durable_directory(const Files& files, const std::string& path) {
  if (path.empty() || files.is_directory(path)) return;
  make_durable_directory(files, parent_path(path));
  files.make_directory(path);
  files.sync_directory(parent_path(path));
}

void remove_tree(const Files& files, const std::string& path) {
  if (!files.exists(path)) return;
  try {
    files.remove(path);  // a file, a link (never followed) or an empty directory
  } catch (const FileError& e) {
    if (e.error_number() != ENOTEMPTY && e.error_number() != EEXIST) throw;
    for (const auto& name : files.list(path)) remove_tree(files, join_path(path, name));
    files.remove(path);
  }
}

std::string parent_path(const std::string& path) {
  const auto slash = path.rfind('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

std::string join_path(const std::string& a, const std::string& b) { return a.empty() || a == "." ? b : a + "/" + b; }

}  // namespace dstrain
