// dstrain: the table of subcommands and the one catch.

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

}  // namespace
}  // namespace dstrain

int main(int argc, char** argv) {
  // A closed pipe and a file past the size that ulimit allows are errors of that write, not the end of the run.
  std::signal(SIGPIPE, SIG_IGN);
  std::signal(SIGXFSZ, SIG_IGN);
  try {
    return dstrain::run(argc, argv);
  } catch (const dstrain::Error& e) {
    const auto code = static_cast<int>(e.code());
    const int rank = dstrain::launched_rank();
    if (rank == 0)
      std::fprintf(stderr, "dstrain: %s\n", e.what());
    else if (!e.shared() && e.code() != dstrain::ExitCode::usage)  // every rank reads the same job file
      std::fprintf(stderr, "dstrain: rank %d: %s\n", rank, e.what());
    std::fflush(nullptr);
    // Threads may be left in MPI for good, in wait of a peer that is gone.
    if (e.code() == dstrain::ExitCode::lost) std::_Exit(code);
    return code;
  } catch (const std::exception& e) {
    const dstrain::Error error = dstrain::to_error(e);
    std::fprintf(stderr, "dstrain: %s%s\n", error.code() == dstrain::ExitCode::bug ? "internal error: " : "",
                 error.what());
    return static_cast<int>(error.code());
  }
}
