#include "lib/core/host_memory.h"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <limits>
#include <string>

namespace dstrain {

namespace {

constexpr std::uint64_t kNone = std::numeric_limits<std::uint64_t>::max();

std::uint64_t number_in(const char* path) {
  std::ifstream in(path);
  std::uint64_t value = 0;
  return in >> value ? value : kNone;  // "max" is no number
}

std::uint64_t available_in_machine() {
  std::ifstream in("/proc/meminfo");
  std::string key;
  for (std::uint64_t kilobytes = 0; in >> key >> kilobytes; in.ignore(64, '\n'))
    if (key == "MemAvailable:") return kilobytes * 1024;
  return kNone;
}

std::uint64_t left_of_group() {
  const std::uint64_t most = number_in("/sys/fs/cgroup/memory.max"), used = number_in("/sys/fs/cgroup/memory.current");
  if (most == kNone || used == kNone) return kNone;
  return most > used ? most - used : 0;
}

std::uint64_t left_of_address_space() {
  rlimit limit{};
  if (getrlimit(RLIMIT_AS, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return kNone;
  const std::uint64_t pages = number_in("/proc/self/statm");
  if (pages == kNone) return kNone;
  const std::uint64_t used = pages * static_cast<std::uint64_t>(sysconf(_SC_PAGESIZE)), most = limit.rlim_cur;
  return most > used ? most - used : 0;
}

}  // namespace

std::uint64_t available_host_memory() {
  return std::min({available_in_machine(), left_of_group(), left_of_address_space()});
}

}  // namespace dstrain
