// dstrain data: the table of its subcommands.

#include "apps/data.h"

#include <utility>

namespace dstrain {

RunCommand add_data(CLI::App& command) {
  constexpr CommandRow kRows[] = {
      {"tokenizer", "Train a byte-level BPE and write Hugging Face's tokenizer.json", add_data_tokenizer},
      {"tokenize", "Turn text into token files", add_data_tokenize},
      {"inspect", "Counts, lengths, checksums and samples of token files", add_data_inspect},
      {"import", "Token files from those of llm.c or Megatron", add_data_import},
      {"export", "Token files to those of llm.c or Megatron", add_data_export},
      {"locate", "Which documents a step of a run was trained on", add_data_locate},
  };
  return add_commands(command, kRows);
}

}  // namespace dstrain
