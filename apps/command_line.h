#pragma once
// The command line of dstrain: its subcommands, and what the arguments ask for.

#include <iosfwd>

#include "apps/commands.h"

namespace dstrain {

struct Asked {
  RunCommand command;            // none when nothing is to run: help was printed, or the arguments are wrong
  ExitCode code = ExitCode::ok;  // what the process then ends with: ok or usage
};

// `arguments` are those of main. Help and the version go to `out`, what is wrong with the arguments to `err`.
Asked parse_command_line(int count, const char* const* arguments, std::ostream& out, std::ostream& err);

}  // namespace dstrain
