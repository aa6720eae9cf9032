#pragma once
// RunLock: one run in a run directory at a time.

#include <memory>
#include <string>

#include "lib/core/clock.h"
#include "lib/core/files.h"

namespace dstrain {

// Held while it exists. The lock is the kernel's, on RUN/lock, so a dead owner's is free at once; the file's text names
// the owner.
class RunLock {
 public:
  // Creates the directory when it is absent. Throws Error{write} naming the owner's host, process and start time when
  // the directory is taken.
  RunLock(const Files& files, const std::string& run_directory, const std::string& host_name, const Clock& clock);

 private:
  std::unique_ptr<File> file_;
};

}  // namespace dstrain
