#include "lib/checkpoint/run_lock.h"

#include <signal.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <ctime>
#include <fstream>
#include <sstream>
#include <utility>

namespace dstrain {

namespace {

constexpr std::uint64_t kLongestText = 4096;
constexpr double kPatience = 2;  // seconds, on a busy machine

// "" where the kernel does not tell.
std::string boot_id() {
  std::string id;
  std::ifstream("/proc/sys/kernel/random/boot_id") >> id;
  return id;
}

// Field 22 of /proc/PID/stat; the second may hold blanks and brackets.
std::string start_of(std::int64_t process) {
  std::string line;
  std::getline(std::ifstream(format("/proc/{}/stat", process)), line);
  const auto close = line.rfind(')');
  if (close == line.npos) return "";
  std::istringstream rest(line.substr(close + 1));
  std::string field;
  for (int i = 3; i <= 22; ++i) rest >> field;
  return field;
}

std::string text_of(const Files& files, const std::string& path) {
  try {
    return read_file(files, path, kLongestText);
  } catch (const Error&) {  // gone meanwhile, or not ours to read
    return "";
  }
}

void write_text(File& file, const std::string& text) {
  file.truncate(0);
  file.pwrite(std::as_bytes(std::span(text)), 0);
}

}  // namespace

LockOwner lock_owner(const std::string& host_name, const Clock& clock) {
  const std::time_t now = clock.wall();
  std::tm utc{};
  gmtime_r(&now, &utc);
  char start[32] = {};
  std::strftime(start, sizeof start, "%Y-%m-%dT%H:%M:%SZ", &utc);
  return {host_name, boot_id(), getpid(), start_of(getpid()), start};
}

std::string LockOwner::describe() const {
  if (host.empty()) return "another process";
  return format("host {}, process {}, started {}", host, process, since);
}

std::string LockOwner::to_text() const { return format("{}\nboot {} ticks {}\n", describe(), boot, process_start); }

LockOwner LockOwner::parse(const std::string& text) {
  const auto between = [&](const char* before, const char* after) -> std::string {
    const auto begin = text.find(before);
    if (begin == text.npos) return "";
    const auto from = begin + std::string_view(before).size(), end = text.find(after, from);
    return end == text.npos ? "" : text.substr(from, end - from);
  };
  LockOwner owner{between("host ", ", "), between("\nboot ", " "), 0, between(" ticks ", "\n"),
                  between("started ", "\n")};
  const std::string process = between(", process ", ",");
  std::from_chars(process.data(), process.data() + process.size(), owner.process);
  return owner;
}

bool LockOwner::dead(const LockOwner& self) const {
  if (host.empty() || host != self.host || boot.empty() || self.boot.empty()) return false;
  if (boot != self.boot) return true;
  if (process <= 0 || (kill(static_cast<pid_t>(process), 0) != 0 && errno == ESRCH)) return true;
  const std::string start = start_of(process);
  return !start.empty() && !process_start.empty() && start != process_start;
}

void require_own_directory(const Files& files, const std::string& path) {
  using Kind = FileStatus::Kind;
  std::string trimmed = path;
  while (trimmed.size() > 1 && trimmed.ends_with('/')) trimmed.pop_back();
  const FileStatus status = files.status(trimmed);
  if (status.kind == Kind::absent) return;
  require(status.kind != Kind::link, ExitCode::write, "{}: it is a link; name the directory that it points to", path);
  require(status.kind == Kind::directory, ExitCode::write, "{}: it is not a directory", path);
  require(status.mine, ExitCode::write, "{}: it belongs to user {}, this process runs as user {}", path, status.owner,
          geteuid());
}

RunLock::RunLock(const Files& files, const std::string& run_directory, const std::string& host_name, const Clock& clock)
    : files_(files), clock_(clock) {
  require_own_directory(files, run_directory);
  make_durable_directory(files, run_directory);
  const std::string path = join_path(run_directory, "lock");
  const LockOwner self = lock_owner(host_name, clock);
  text_ = self.to_text();
  file_ = files.open(path, OpenMode::append);
  const FileLock lock = file_->try_lock();
  // The owner may have the file and not have written yet who it is: what is there is then nothing, or of the dead.
  const auto owner_of = [&](const std::string& file) {
    LockOwner owner;
    for (const double end = clock.now() + kPatience; clock.now() < end; clock.sleep(0.02)) {
      owner = LockOwner::parse(text_of(files, file));
      if (!owner.host.empty() && !owner.dead(self)) break;
    }
    return owner;
  };
  if (lock == FileLock::held) {
    const LockOwner owner = owner_of(path);
    fail(ExitCode::write, "{} is in use by {}", run_directory, owner.describe());
  }
  if (lock == FileLock::granted) {
    write_text(*file_, text_);
    return;
  }

  // A lease. Two that take over the same stale one at once: the second renames what the first has made, sees that it is
  // not the stale one, and puts it back.
  file_.reset();
  lease_path_ = join_path(run_directory, "lock.lease");
  for (int attempt = 0;; ++attempt) {
    try {
      file_ = files.open(lease_path_, OpenMode::create);
      break;
    } catch (const FileError& e) {
      if (e.error_number() != EEXIST) throw;
    }
    const std::string text = text_of(files, lease_path_);
    const LockOwner owner = LockOwner::parse(text);
    const std::string probe = format("{}/lock.{}.{}", run_directory, self.host, self.process);
    files.open(probe, OpenMode::replace)->pwrite(std::as_bytes(std::span(text_)), 0);
    const double age = files.status(probe).modified - files.status(lease_path_).modified;
    files.remove(probe);
    const bool stale = owner.dead(self) || age >= kStaleSeconds;
    if (!stale || attempt == 3)
      fail(ExitCode::write, "{} is in use by {} (lease renewed {:.0f} s ago, free after {:.0f} s)", run_directory,
           (owner.host.empty() ? owner_of(lease_path_) : owner).describe(), age, kStaleSeconds);
    try {
      files.rename(lease_path_, probe);
      if (text_of(files, probe) == text) {
        files.remove(probe);
      } else {
        files.rename(probe, lease_path_);
      }
    } catch (const FileError& e) {
      if (e.error_number() != ENOENT) throw;  // another one was first
    }
  }
  write_text(*file_, text_);
  file_->sync();
  lease_ = std::thread([this] { renew(); });
}

void RunLock::renew() {
  double next = clock_.now() + kRenewSeconds;
  while (!stop_) {
    clock_.sleep(0.1);
    if (clock_.now() < next) continue;
    next = clock_.now() + kRenewSeconds;
    try {
      if (text_of(files_, lease_path_) != text_) {
        lost_ = true;
        return;
      }
      file_->pwrite(std::as_bytes(std::span(text_)), 0);
    } catch (const std::exception&) {  // the next renewal tries again, long before the lease is stale
    }
  }
}

RunLock::~RunLock() {
  if (!lease_.joinable()) {
    try {
      file_->truncate(0);  // nobody has it
    } catch (const std::exception&) {
    }
    return;
  }
  stop_ = true;
  lease_.join();
  try {
    if (!lost_ && text_of(files_, lease_path_) == text_) files_.remove(lease_path_);
  } catch (const std::exception&) {  // it will be stale in a minute
  }
}

}  // namespace dstrain
