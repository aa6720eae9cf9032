#pragma once
// What the data subcommands share.

#include <cstdio>
#include <string>
#include <string_view>
#include <vector>

#include "apps/commands.h"
#include "lib/core/shape.h"

namespace dstrain {

RunCommand add_data_tokenizer(CLI::App& command);
RunCommand add_data_tokenize(CLI::App& command);
RunCommand add_data_import(CLI::App& command);
RunCommand add_data_export(CLI::App& command);
RunCommand add_data_inspect(CLI::App& command);
RunCommand add_data_locate(CLI::App& command);

// One line of output. Formatted by lib/core, so that strings need no c_str().
template <class... A>
void say(std::string_view text, const A&... args) {
  std::puts(format(text, args...).c_str());
}

}  // namespace dstrain
