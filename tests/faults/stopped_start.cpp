// A shared library to load in front of one rank (LD_PRELOAD), the first of its host: SIGSTOP when it makes the table
// that the ranks of the host share (lib/comm/rank_table.cpp), so behind the start of MPI and before any rank is
// watched.

#include <sys/syscall.h>
#include <unistd.h>

#include <csignal>
#include <cstring>

extern "C" int memfd_create(const char* name, unsigned flags) noexcept {
  if (std::strcmp(name, "dstrain-ranks") == 0) std::raise(SIGSTOP);
  return static_cast<int>(syscall(SYS_memfd_create, name, flags));
}
