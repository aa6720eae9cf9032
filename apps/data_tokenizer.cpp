// dstrain data tokenizer: a byte-level BPE from text.

#include <memory>
#include <optional>

#include "apps/data.h"
#include "lib/core/clock.h"
#include "lib/core/hash.h"
#include "lib/tokenizer/bpe_trainer.h"

namespace dstrain {

namespace {

struct Options {
  std::vector<std::string> inputs;
  std::string out;
  std::string split = "gpt2";
  Index vocab_size = 0;
  Index min_frequency = 0;
};

ExitCode train_tokenizer(const Options& o) {
  const Files& files = system_files();
  require(o.vocab_size >= 257 && o.vocab_size <= (1 << 24), ExitCode::usage,
          "--vocab-size: {} is out of range; 256 bytes and the end of document need at least 257, at most 16777216 fit",
          o.vocab_size);
  require(!files.exists(o.out), ExitCode::write, "{} exists; remove it, or choose another name", o.out);
  std::optional<BpeTrainer> trainer;
  for (const Split split : {Split::gpt2, Split::llama3, Split::deepseek_v3})
    if (o.split == name_of(split)) trainer.emplace(split);
  const auto paths = find_documents(files, o.inputs);
  const double begin = system_clock().now();
  Corpus corpus;
  corpus.read(paths, [&](const std::string&, const std::string& text) { trainer->add(text); });
  const Tokenizer tokenizer = trainer->train(o.vocab_size, o.min_frequency);
  files.make_directory(parent_path(o.out));
  write_file_atomically(files, o.out, tokenizer.to_json());
  say("{}: {} tokens from {} documents, {:.1f} MB, in {:.1f} s (hash {})", o.out, tokenizer.vocab_size(),
      corpus.documents, corpus.bytes / 1e6, system_clock().now() - begin, hex(tokenizer.hash()));
  if (tokenizer.vocab_size() < o.vocab_size)
    say("the text has no more pairs to merge: {} tokens, not {}", tokenizer.vocab_size(), o.vocab_size);
  return ExitCode::ok;
}

}  // namespace

RunCommand add_data_tokenizer(CLI::App& command) {
  const auto o = std::make_shared<Options>();
  command.add_option("inputs", o->inputs, "Files or directories of .txt, .md, .rst, and .gz of them")->required();
  command.add_option("--vocab-size", o->vocab_size, "Tokens, the 256 bytes and the end of document included")
      ->required();
  command.add_option("--out", o->out, "tokenizer.json to write")->required();
  command.add_option("--split", o->split, "How text is cut into pieces before merging")
      ->check(CLI::IsMember({"gpt2", "llama3", "deepseek_v3"}))
      ->capture_default_str();
  command.add_option("--min-frequency", o->min_frequency, "Least number of occurrences of a pair that is merged")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  return [o] { return train_tokenizer(*o); };
}

}  // namespace dstrain
