#include "apps/command_line.h"

#include <memory>
#include <string>

#include "lib/core/build.h"

namespace dstrain {

namespace {

constexpr CommandRow kCommands[] = {
    {"train", "Train a job; resumes by itself when the run directory holds a checkpoint", add_train},
    {"plan", "Print mesh, stages, memory, FLOPs and bubble of a job without running it", add_plan},
    {"eval", "Loss of a run's newest checkpoint on its held-out data", add_eval},
    {"generate", "Text from a prompt", add_generate},
    {"data", "Raw text to a tokenizer and to token files", add_data},
    {"config", "Print a resolved job, explain its keys, write its JSON Schema", add_config},
    {"checkpoint", "List, verify and compare checkpoints; import and export Hugging Face's files", add_checkpoint},
    {"parity", "Compare forward, backward and optimizer steps with reference results", add_parity},
    {"report", "One HTML page with the plots of a run, or of several, to open in a browser", add_report},
    {"schedule", "Draw a pipeline schedule, its bubble and its live activations", add_schedule},
    {"bench", "Measure ops and training steps against their ceilings", add_bench},
    {"doctor", "What this machine and build can do, and what is missing", add_doctor},
};

}  // namespace

RunCommand add_commands(CLI::App& command, std::span<const CommandRow> rows) {
  command.require_subcommand(1);
  const auto chosen = std::make_shared<RunCommand>();
  for (const CommandRow& row : rows) {
    CLI::App* const sub = command.add_subcommand(row.name, row.help);
    sub->final_callback([chosen, body = row.add(*sub)] { *chosen = body; });
  }
  return [chosen] { return (*chosen)(); };
}

Asked parse_command_line(int count, const char* const* arguments, std::ostream& out, std::ostream& err) {
  CLI::App app("dstrain trains language models on CPUs and GPUs, on one rank or many");
  app.set_version_flag("--version", std::string("dstrain ") + build::version);
  const RunCommand command = add_commands(app, kCommands);
  try {
    app.parse(count, arguments);
    return {.command = command};
  } catch (const CLI::ParseError& e) {
    return {.code = app.exit(e, out, err) == 0 ? ExitCode::ok : ExitCode::usage};
  }
}

}  // namespace dstrain
