#pragma once
// What the data subcommands share: one function each, and reading of a corpus.

#include <cstdio>
#include <string>
#include <string_view>
#include <vector>

#include "apps/commands.h"
#include "lib/core/shape.h"
#include "lib/data/text.h"

namespace dstrain {

RunCommand add_data_tokenizer(CLI::App& command);
RunCommand add_data_tokenize(CLI::App& command);
RunCommand add_data_inspect(CLI::App& command);
RunCommand add_data_locate(CLI::App& command);

// One line of output. Formatted by lib/core, so that strings need no c_str().
template <class... A>
void say(std::string_view text, const A&... args) {
  std::puts(format(text, args...).c_str());
}

// Calls visit(path, text) for each document that is not empty; counts both kinds.
struct Corpus {
  Index documents = 0, empty = 0;
  double bytes = 0;

  template <class F>
  void read(const std::vector<std::string>& paths, F&& visit) {
    for (const auto& path : paths) {
      const std::string text = read_document(system_files(), path);
      if (text.find_first_not_of(" \t\r\n") == std::string::npos) {
        ++empty;
        continue;
      }
      ++documents;
      bytes += static_cast<double>(text.size());
      visit(path, text);
    }
    require(documents > 0, ExitCode::data, "no text: all of the {} files are empty", paths.size());
  }
};

}  // namespace dstrain
