#pragma once
// RunLock: one run in a run directory at a time.

#include <atomic>
#include <memory>
#include <string>
#include <thread>

#include "lib/core/clock.h"
#include "lib/core/files.h"

namespace dstrain {

// Who holds a run directory.
struct LockOwner {
  std::string host;
  std::string boot;  // of the host's kernel: another one after a reboot
  std::int64_t process = 0;
  std::string process_start;  // in the kernel's ticks: a process id that was given again has another one
  std::string since;          // UTC

  std::string to_text() const;  // two lines
  static LockOwner parse(const std::string& text);
  // "host h, process p, started t".
  std::string describe() const;
  // Known to be gone: a process of this machine, in this boot or an earlier one, that does not run.
  bool dead(const LockOwner& self) const;
};
// This process.
LockOwner lock_owner(const std::string& host_name, const Clock& clock);

// Held while it exists. The lock is the kernel's, on RUN/lock, so a dead owner's is free at once; the file's text names
// the owner. On a file system without locks it is a lease: RUN/lock.lease, made with O_EXCL and renewed every
// kRenewSeconds; it is free when its owner is known to be dead, or after kStaleSeconds without a renewal, by the file
// system's own clock.
class RunLock {
 public:
  static constexpr double kRenewSeconds = 10, kStaleSeconds = 60;

  // Creates the directory when it is absent. Throws Error{write} naming the owner's host, process and start time when
  // the directory is taken. `files` and `clock` are borrowed.
  RunLock(const Files& files, const std::string& run_directory, const std::string& host_name, const Clock& clock);
  ~RunLock();
  RunLock(const RunLock&) = delete;
  RunLock& operator=(const RunLock&) = delete;

  bool is_lease() const { return lease_.joinable(); }
  // A lease that others took meanwhile, because this process stood still too long; never for a lock.
  bool lost() const { return lost_; }

 private:
  void renew();

  const Files& files_;
  const Clock& clock_;
  std::string lease_path_, text_;
  std::unique_ptr<File> file_;
  std::thread lease_;
  std::atomic<bool> stop_{false}, lost_{false};
};

// Throws Error{write} when `path` is there and is not a directory of this user's: a link, a file, or another user's.
// What a run writes must not be moved elsewhere, or changed, by others.
void require_own_directory(const Files& files, const std::string& path);

}  // namespace dstrain
