// dstrain: the table of subcommands and the one catch.

#include <unistd.h>

#include <atomic>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <vector>

#include "apps/commands.h"
#include "lib/comm/launcher.h"
#include "lib/core/build.h"
#include "lib/core/to_error.h"

namespace dstrain {
namespace {

struct Command {
  const char* name;
  const char* help;
  RunCommand (*add)(CLI::App&);
};

constexpr Command kCommands[] = {
    {"train", "Train a job; resumes by itself when the run directory holds a checkpoint", add_train},
    {"plan", "Print mesh, stages, memory, FLOPs and bubble of a job without running it", add_plan},
    {"eval", "Loss of a run's newest checkpoint on its held-out data", add_eval},
    {"generate", "Text from a prompt", add_generate},
    {"data", "Raw text to a tokenizer and to token files", add_data},
    {"config", "Print a resolved job, explain its keys, write its JSON Schema", add_config},
    {"checkpoint", "List, verify and compare checkpoints", add_checkpoint},
    {"parity", "Compare forward, backward and optimizer steps with reference results", add_parity},
    {"report", "One HTML page with the plots of a run, or of several, to open in a browser", add_report},
    {"schedule", "Draw a pipeline schedule, its bubble and its live activations", add_schedule},
    {"bench", "Measure ops and training steps against their ceilings", add_bench},
    {"doctor", "What this machine and build can do, and what is missing", add_doctor},
};

int run(int argc, char** argv) {
  CLI::App app("dstrain trains language models on CPUs and GPUs, on one rank or many");
  app.set_version_flag("--version", std::string("dstrain ") + build::version);
  app.require_subcommand(1);
  RunCommand chosen;
  for (const Command& c : kCommands) {
    CLI::App* command = app.add_subcommand(c.name, c.help);
    RunCommand body = c.add(*command);
    command->final_callback([body, &chosen] { chosen = body; });
  }
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    const int code = app.exit(e);
    return code == 0 ? 0 : static_cast<int>(ExitCode::usage);
  }
  return static_cast<int>(chosen());
}

// The one message of a process that an exception ends. Takes no memory.
void tell(const Error& e) {
  if (const int rank = launched_rank(); rank == 0)
    std::fprintf(stderr, "dstrain: %s\n", e.what());
  else if (!e.shared() && e.code() != ExitCode::usage)  // every rank reads the same job file
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
