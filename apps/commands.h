#pragma once
// One function a subcommand: declares its options on `command` and returns what runs it. The table is in main.cpp.

#include <CLI/CLI.hpp>
#include <functional>

#include "lib/core/errors.h"

namespace dstrain {

using RunCommand = std::function<ExitCode()>;

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
