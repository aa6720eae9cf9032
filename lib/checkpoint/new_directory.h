#pragma once
// NewDirectory: a directory that appears whole or not at all.

#include <optional>
#include <string>

#include "lib/checkpoint/run_lock.h"

namespace dstrain {

// Made as PATH.partial, by one process at a time, and renamed when it is complete.
class NewDirectory {
 public:
  // Throws Error{write} when something other than an empty directory of this user's stands at `path`, or another
  // process is making it. What a killed process has left of it is removed. `files` and `clock` are borrowed.
  NewDirectory(const Files& files, std::string path, const std::string& host_name, const Clock& clock);
  // Removes what was made, unless it was published.
  ~NewDirectory();
  NewDirectory(const NewDirectory&) = delete;
  NewDirectory& operator=(const NewDirectory&) = delete;

  // Where to write until then.
  const std::string& partial() const { return partial_; }
  // Syncs the directory and gives it its name. REQUIRES: its files are synced.
  void publish();

 private:
  void require_free() const;

  const Files& files_;
  std::string path_, partial_;
  std::optional<RunLock> lock_;
  bool published_ = false;
};

}  // namespace dstrain
