// dstrain: one catch around the command that the arguments ask for.

#include <unistd.h>

#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <iostream>
#include <sstream>
#include <thread>

#include "apps/command_line.h"
#include "lib/comm/launcher.h"
#include "lib/core/to_error.h"

namespace dstrain {
namespace {

// Whether this rank says what it found. What rank 0 is `sure` to find too, or should, as it has the same arguments and
// reads the same job file, is left to rank 0. A launcher ends every rank when the first one fails, so the others give
// rank 0 time to speak, and most are ended here by its end; who is not, under a launcher that ends all, met something
// else.
bool speaks(bool left_to_first_rank, bool sure) {
  if (launched_rank() == 0 || !left_to_first_rank) return true;
  std::this_thread::sleep_for(std::chrono::seconds(3));
  return !sure && Launcher().ends_all_ranks();
}

int run(int argc, char** argv) {
  std::ostringstream out, err;
  const Asked asked = parse_command_line(argc, argv, out, err);
  if (asked.command) return static_cast<int>(asked.command());
  const bool failed = asked.code != ExitCode::ok;
  if (failed ? speaks(true, false) : launched_rank() == 0) {
    std::cout << out.str() << std::flush;
    std::cerr << err.str();
  }
  return static_cast<int>(asked.code);
}

// The one message of a process that an exception ends. Takes no memory where none may be left.
void tell(const Error& e) {
  if (!speaks(e.shared() || e.code() == ExitCode::usage, e.shared())) return;
  if (const int rank = launched_rank(); rank == 0)
    std::fprintf(stderr, "dstrain: %s\n", e.what());
  else
    std::fprintf(stderr, "dstrain: rank %d: %s\n", rank, e.what());
  std::fflush(stderr);
}

// An exception that nothing can catch: memory that ran out in a destructor, or in a thread that others depend on.
[[noreturn]] void end_uncaught() {
  static std::atomic_flag told;
  while (told.test_and_set()) pause();  // another thread ends the process
  ExitCode code = ExitCode::bug;
  try {
    if (const std::exception_ptr thrown = std::current_exception()) std::rethrow_exception(thrown);
    std::fputs("dstrain: internal error: terminated\n", stderr);
  } catch (const std::exception& e) {
    const Error error = to_error(e);
    code = error.code();
    tell(error);
  } catch (...) {
    std::fputs("dstrain: internal error: unknown exception\n", stderr);
  }
  std::_Exit(static_cast<int>(code));
}

}  // namespace
}  // namespace dstrain

int main(int argc, char** argv) {
  // A closed pipe and a file past the size that ulimit allows are errors of that write, not the end of the run.
  std::signal(SIGPIPE, SIG_IGN);
  std::signal(SIGXFSZ, SIG_IGN);
  std::set_terminate(dstrain::end_uncaught);
  try {
    return dstrain::run(argc, argv);
  } catch (const std::exception& e) {
    const dstrain::Error error = dstrain::to_error(e);
    const auto code = static_cast<int>(error.code());
    std::fflush(stdout);
    dstrain::tell(error);
    // Threads may be left in MPI for good, in wait of a peer that is gone.
    if (error.code() == dstrain::ExitCode::lost) std::_Exit(code);
    return code;
  }
}
