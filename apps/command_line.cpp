#include "apps/command_line.h"

#include <memory>
#include <string>
#include <vector>

#include "lib/config/values.h"
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

// What is wrong when one of several commands had to be named and was not; "" when that is not what is wrong.
std::string missing_command(CLI::App& app) {
  CLI::App* at = &app;
  std::string path = "dstrain";
  while (!at->get_subcommands().empty()) {
    at = at->get_subcommands().front();
    path += " " + at->get_name();
  }
  std::vector<std::string> names;
  std::string all;
  for (const CLI::App* const command : at->get_subcommands([](CLI::App*) { return true; })) {
    names.push_back(command->get_name());
    all += (all.empty() ? "" : ", ") + names.back();
  }
  if (names.empty()) return "";
  const std::vector<std::string> left = app.remaining(true);
  if (left.empty()) return format("{} needs a command: {}", path, all);
  const std::string &word = left.front(), near = nearest(word, names);
  if (word.starts_with("-")) return format("{} has no option '{}'", path, word);
  return format("{} has no command '{}'; {}", path, word,
                near.empty() ? "there are " + all : "did you mean '" + near + "'?");
}

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
  } catch (const CLI::RequiredError& e) {
    if (const std::string wrong = missing_command(app); !wrong.empty())
      err << wrong << "\nRun with --help for more information.\n";
    else
      app.exit(e, out, err);
    return {.code = ExitCode::usage};
  } catch (const CLI::ParseError& e) {
    return {.code = app.exit(e, out, err) == 0 ? ExitCode::ok : ExitCode::usage};
  }
}

}  // namespace dstrain
