#pragma once
// One function a subcommand: declares its options on `command` and returns what runs it. The table is in
// command_line.cpp.

#include <CLI/CLI.hpp>
#include <functional>
#include <span>

#include "lib/core/errors.h"

namespace dstrain {

using RunCommand = std::function<ExitCode()>;

struct CommandRow {
  const char* name;
  const char* help;
  RunCommand (*add)(CLI::App&);
};

// Declares a subcommand a row, one of which is required. Returns what runs the one that was named; it may outlive
// `command`.
RunCommand add_commands(CLI::App& command, std::span<const CommandRow> rows);

// As CLI::Range, which lets a NaN pass.
inline CLI::Validator number_in(double least, double most) {
  return {[least, most](std::string& text) {
            double value = 0;
            const bool inside = CLI::detail::lexical_cast(text, value) && value >= least && value <= most;
            return inside ? std::string() : format("{} is not a number from {} to {}", text, least, most);
          },
          format("NUMBER in [{} - {}]", least, most)};
}

RunCommand add_train(CLI::App& command);
RunCommand add_plan(CLI::App& command);
RunCommand add_eval(CLI::App& command);
RunCommand add_generate(CLI::App& command);
RunCommand add_data(CLI::App& command);
RunCommand add_config(CLI::App& command);
RunCommand add_checkpoint(CLI::App& command);
RunCommand add_parity(CLI::App& command);
RunCommand add_report(CLI::App& command);
RunCommand add_schedule(CLI::App& command);
RunCommand add_bench(CLI::App& command);
RunCommand add_doctor(CLI::App& command);

}  // namespace dstrain
