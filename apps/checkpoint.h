#pragma once
// Parts of `dstrain checkpoint` with files of their own.

#include <CLI/CLI.hpp>
#include <functional>

#include "lib/core/errors.h"

namespace dstrain {

// Adds `import` and `export`; the chosen one's body goes to `chosen`.
void add_conversions(CLI::App& command, std::function<ExitCode()>& chosen);

}  // namespace dstrain
