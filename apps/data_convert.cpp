// dstrain data import and export: token files of other programs.

#include <algorithm>
#include <memory>

#include "apps/data.h"
#include "lib/data/foreign.h"
#include "lib/data/glob.h"
#include "lib/tokenizer/tokenizer.h"

namespace dstrain {

namespace {

struct Options {
  std::vector<std::string> inputs;
  std::string format, out, tokenizer;
  Index vocab_size = 0, end_of_document = -1;
};

std::vector<std::string> expand(const Files& files, const std::vector<std::string>& inputs) {
  std::vector<std::string> out;
  for (const std::string& input : inputs) {
    const auto paths = expand_glob(files, input);
    require(!paths.empty(), ExitCode::data, "{}: no file matches", input);
    out.insert(out.end(), paths.begin(), paths.end());
  }
  return out;
}

ExitCode import(const Options& o) {
  const Files& files = system_files();
  TokenFileInfo info{0, o.vocab_size, static_cast<std::int32_t>(o.end_of_document)};
  Index ids = INT32_MAX;  // of the tokenizer: a larger --vocab-size pads a model's vocabulary, it makes no more ids
  if (!o.tokenizer.empty()) {
    const Tokenizer tokenizer = Tokenizer::load(files, o.tokenizer);
    info = {tokenizer.hash(), tokenizer.vocab_size(), tokenizer.end_of_document()};
    if (o.end_of_document >= 0) info.end_of_document = static_cast<std::int32_t>(o.end_of_document);
    if (o.vocab_size > 0) info.vocab_size = o.vocab_size;
    ids = tokenizer.vocab_size();
  }
  require(info.vocab_size > 0 && info.end_of_document >= 0, ExitCode::usage,
          "--tokenizer, or --vocab-size and --end-of-document, must say what the ids are");
  TokenFileInfo accepted = info;
  accepted.vocab_size = std::min(ids, info.vocab_size);
  require(info.end_of_document < accepted.vocab_size, ExitCode::usage, "--end-of-document: {} of a vocabulary of {}",
          info.end_of_document, accepted.vocab_size);
  TokenWriter out(files, o.out, info);
  (o.format == "llmc" ? import_llmc : import_megatron)(files, expand(files, o.inputs), accepted, out);
  const auto written = out.finish();
  require(!written.empty(), ExitCode::data, "no document in {} file(s)", o.inputs.size());
  say("{}{}: {} documents, {} tokens", written[0], written.size() > 1 ? " to " + written.back() : "", out.documents(),
      out.tokens());
  return ExitCode::ok;
}

ExitCode run_export(const Options& o) {
  const Files& files = system_files();
  const auto paths = expand(files, o.inputs);
  const TokenFileInfo first = TokenFile(files, paths[0]).info();
  Index tokens = 0, documents = 0;
  for (const std::string& path : paths) {
    const TokenFile file(files, path);
    require(file.info().tokenizer_hash == first.tokenizer_hash && file.info().vocab_size == first.vocab_size,
            ExitCode::data, "{}: made with tokenizer {}, but {} with {}", path, hex(file.info().tokenizer_hash),
            paths[0], hex(first.tokenizer_hash));
    tokens += file.tokens();
    documents += file.documents();
  }
  const auto written = (o.format == "llmc" ? export_llmc : export_megatron)(files, paths, o.out);
  say("{}{}: {} documents, {} tokens", written[0], written.size() > 1 ? " to " + written.back() : "", documents,
      tokens);
  return ExitCode::ok;
}

void declare(CLI::App& command, const std::shared_ptr<Options>& o, const char* inputs) {
  command.add_option("inputs", o->inputs, inputs)->required();
  command.add_option("--format", o->format, "Whose format: llmc or megatron")
      ->required()
      ->check(CLI::IsMember({"llmc", "megatron"}));
}

}  // namespace

RunCommand add_data_import(CLI::App& command) {
  const auto o = std::make_shared<Options>();
  declare(command, o, "llm.c's .bin files in their order, or Megatron's .idx; globs too");
  command.add_option("--out", o->out, "Prefix of the token files: PREFIX-00000.h5 and on")->required();
  command.add_option("--tokenizer", o->tokenizer, "tokenizer.json that made the ids");
  command.add_option("--vocab-size", o->vocab_size, "Ids are below it; default the tokenizer's")
      ->check(CLI::Range(1, INT32_MAX));
  command.add_option("--end-of-document", o->end_of_document, "Id between documents; default the tokenizer's")
      ->check(CLI::Range(0, INT32_MAX));
  return [o] { return import(*o); };
}

RunCommand add_data_export(CLI::App& command) {
  const auto o = std::make_shared<Options>();
  declare(command, o, "Token files, or globs of them");
  command.add_option("--out", o->out, "Prefix: PREFIX_000000.bin and on for llmc, PREFIX.bin and PREFIX.idx")
      ->required();
  return [o] { return run_export(*o); };
}

}  // namespace dstrain
