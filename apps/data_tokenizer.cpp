// dstrain data tokenizer: a byte-level BPE from text.

#include <memory>
#include <optional>

#include "apps/data.h"
#include "lib/core/clock.h"
#include "lib/core/hash.h"
#include "lib/core/thread_pool.h"
#include "lib/data/documents.h"
#include "lib/tokenizer/bpe_trainer.h"

namespace dstrain {

namespace {

constexpr std::size_t kBatchBytes = 16u << 20;

struct Options {
  std::vector<std::string> inputs;
  std::string out;
  std::string split = "gpt2";
  std::string documents = "file", key = "text";
  Index vocab_size = 0;
  Index min_frequency = 0;
  int threads = 0;  // 0: all cores
};

ExitCode train_tokenizer(const Options& o) {
  const Files& files = system_files();
  require(o.vocab_size >= 257 && o.vocab_size <= (1 << 24), ExitCode::usage,
          "--vocab-size: {} is out of range; 256 bytes and the end of document need at least 257, at most 16777216 fit",
          o.vocab_size);
  require(!files.exists(o.out), ExitCode::write, "{} exists; remove it, or choose another name", o.out);
  std::optional<BpeTrainer> trainer;
  for (const Split split : kSplits)
    if (o.split == name_of(split)) trainer.emplace(split);
  const double begin = system_clock().now();
  DocumentReader reader(files, find_text(files, o.inputs), document_rule(o.documents));
  ThreadPool pool(o.threads > 0 ? o.threads : available_cores());
  std::vector<std::string> batch;  // read before they are counted on all threads
  std::size_t batch_bytes = 0;
  const auto count = [&] {
    trainer->add(batch, pool);
    batch.clear();
    batch_bytes = 0;
  };
  Index documents = 0;
  double bytes = 0;
  for (RawDocument raw; reader.next(raw);) {
    std::string text = text_of(std::move(raw), reader.texts(), o.key);
    if (is_blank(text)) continue;
    ++documents;
    bytes += static_cast<double>(text.size());
    batch_bytes += text.size();
    batch.push_back(std::move(text));
    if (batch_bytes >= kBatchBytes) count();
  }
  count();
  require(documents > 0, ExitCode::data, "no text: all of the {} files are empty", reader.texts().size());
  const Tokenizer tokenizer = trainer->train(o.vocab_size, o.min_frequency);
  files.make_directory(parent_path(o.out));
  write_file_atomically(files, o.out, tokenizer.to_json());
  say("{}: {} tokens from {} documents, {:.1f} MB, in {:.1f} s (hash {})", o.out, tokenizer.vocab_size(), documents,
      bytes / 1e6, system_clock().now() - begin, hex(tokenizer.hash()));
  if (tokenizer.vocab_size() < o.vocab_size)
    say("the text has no more pairs to merge: {} tokens, not {}", tokenizer.vocab_size(), o.vocab_size);
  return ExitCode::ok;
}

}  // namespace

RunCommand add_data_tokenizer(CLI::App& command) {
  const auto o = std::make_shared<Options>();
  command
      .add_option("inputs", o->inputs,
                  "Files, directories or globs of .txt, .md, .rst and .jsonl, each plain, .gz or .zst")
      ->required();
  command.add_option("--documents", o->documents, "What a document is in .txt, .md and .rst, as of data tokenize")
      ->check(CLI::IsMember({"file", "blank-line", "record"}))
      ->capture_default_str();
  command.add_option("--key", o->key, "Key of the text in .jsonl")->capture_default_str();
  command.add_option("--vocab-size", o->vocab_size, "Tokens, the 256 bytes and the end of document included")
      ->required();
  command.add_option("--out", o->out, "tokenizer.json to write")->required();
  command.add_option("--split", o->split, "How text is cut into pieces before merging")
      ->check(CLI::IsMember({"gpt2", "llama3", "qwen2", "deepseek_v3"}))
      ->capture_default_str();
  command.add_option("--min-frequency", o->min_frequency, "Least number of occurrences of a pair that is merged")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command.add_option("--threads", o->threads, "Threads that count; 0 is every core. The result is the same")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  return [o] { return train_tokenizer(*o); };
}

}  // namespace dstrain
