#include "lib/checkpoint/run_lock.h"

#include <unistd.h>

#include <ctime>

namespace dstrain {

RunLock::RunLock(const Files& files, const std::string& run_directory, const std::string& host_name,
                 const Clock& clock) {
  files.make_directory(run_directory);
  const std::string path = join_path(run_directory, "lock");
  file_ = files.open(path, OpenMode::append);
  if (!file_->try_lock()) {
    std::string owner = read_file(files, path, 4096);
    while (owner.ends_with('\n')) owner.pop_back();
    fail(ExitCode::write, "{} is in use by {}", run_directory, owner.empty() ? "another process" : owner);
  }
  const std::time_t now = clock.wall();
  std::tm utc{};
  gmtime_r(&now, &utc);
  char start[32] = {};
  std::strftime(start, sizeof start, "%Y-%m-%dT%H:%M:%SZ", &utc);
  const std::string owner = format("host {}, process {}, started {}\n", host_name, getpid(), start);
  file_->truncate(0);
  file_->pwrite(std::as_bytes(std::span(owner)), 0);
}

}  // namespace dstrain
