#include <algorithm>
#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "apps/commands.h"
#include "lib/core/clock.h"
#include "lib/data/bpe_trainer.h"
#include "lib/data/text.h"
#include "lib/data/token_file.h"

namespace dstrain {

namespace {

struct Options {
  std::vector<std::string> inputs;
  std::string out, tokenizer, eval_out, file;
  std::string split = "gpt2";
  Index vocab_size = 0;
  Index min_frequency = 0;
  double eval_fraction = 0;
  int samples = 3;
  RunCommand chosen;
};

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

// Whether a document is held out: by its content alone, so that it falls on the same side in every run.
bool held_out(const std::string& text, double fraction) {
  constexpr std::uint64_t kSeed = 0x68656c646f757421ull;  // apart from other uses of the hash
  return static_cast<double>(xxh3(text, kSeed) >> 11) * 0x1p-53 < fraction;
}

ExitCode tokenize(const Options& o) {
  const Files& files = system_files();
  require(o.eval_fraction >= 0 && o.eval_fraction < 1, ExitCode::usage, "--eval-fraction: {} is not in [0, 1)",
          o.eval_fraction);
  require((o.eval_fraction > 0) == !o.eval_out.empty(), ExitCode::usage,
          "--eval-fraction and --eval-out belong together");
  require(o.eval_out != o.out, ExitCode::usage, "--eval-out: must differ from --out");
  const Tokenizer tokenizer = Tokenizer::load(files, o.tokenizer);
  const auto paths = find_documents(files, o.inputs);
  const TokenFileInfo info{tokenizer.hash(), tokenizer.vocab_size(), tokenizer.end_of_document()};
  TokenWriter train(files, o.out, info);
  std::optional<TokenWriter> eval;
  if (!o.eval_out.empty()) eval.emplace(files, o.eval_out, info);

  Encoder encoder(tokenizer);
  std::vector<std::int32_t> ids;
  Corpus corpus;
  const double begin = system_clock().now();
  corpus.read(paths, [&](const std::string&, const std::string& text) {
    ids.clear();
    encoder.encode(text, ids);
    (eval && held_out(text, o.eval_fraction) ? *eval : train).add(ids);
  });
  require(train.documents() > 0, ExitCode::data, "every document was held out; lower --eval-fraction");
  require(!eval || eval->documents() > 0, ExitCode::data,
          "none of {} documents was held out; raise --eval-fraction: {}", corpus.documents, o.eval_fraction);
  const double seconds = system_clock().now() - begin;
  const auto report = [&](TokenWriter& writer) {
    const auto written = writer.finish();
    say("{}{}: {} documents, {} tokens", written[0], written.size() > 1 ? " to " + written.back() : "",
        writer.documents(), writer.tokens());
  };
  report(train);
  if (eval) report(*eval);
  const double tokens = static_cast<double>(train.tokens() + (eval ? eval->tokens() : 0));
  say("{:.1f} MB of text, {:.2f} bytes a token, {:.1f} million tokens/s{}", corpus.bytes / 1e6, corpus.bytes / tokens,
      tokens / seconds / 1e6, corpus.empty ? format("; {} empty files left out", corpus.empty) : "");
  return ExitCode::ok;
}

// A document for a terminal: control bytes and bytes that are not UTF-8 shown as '.'.
std::string preview(const std::string& text) {
  std::string out;
  for (std::size_t i = 0; i < text.size();) {
    const auto byte = [&](std::size_t k) { return k < text.size() ? static_cast<unsigned char>(text[k]) : 0u; };
    const unsigned c = byte(i);
    std::size_t n = c < 0x80                 ? 1
                    : c >= 0xc2 && c <= 0xdf ? 2
                    : (c & 0xf0u) == 0xe0    ? 3
                    : c >= 0xf0 && c <= 0xf4 ? 4
                                             : 0;
    for (std::size_t k = 1; k < n; ++k)
      if ((byte(i + k) & 0xc0u) != 0x80) n = 0;
    if (n == 0 || (n == 1 && c < 0x20 && c != '\n' && c != '\t') || c == 0x7f || (c == 0xc2 && byte(i + 1) < 0xa0)) {
      out += '.';
      i += std::max<std::size_t>(n, 1);
      continue;
    }
    out.append(text, i, n);
    i += n;
  }
  return out;
}

ExitCode inspect(const Options& o) {
  constexpr Index kPreview = 64;  // tokens shown of a document
  const Files& files = system_files();
  TokenFile file(files, o.file);
  const TokenFileInfo& info = file.info();
  say("{}: {} documents, {} tokens ({}), vocabulary {}, end of document {}, tokenizer {}", o.file, file.documents(),
      file.tokens(), file.type(), info.vocab_size, info.end_of_document, hex(info.tokenizer_hash));
  file.verify();
  say("checksums, ids and document offsets are good");
  std::optional<Tokenizer> tokenizer;
  if (!o.tokenizer.empty()) {
    tokenizer.emplace(Tokenizer::load(files, o.tokenizer));
    require(tokenizer->hash() == info.tokenizer_hash, ExitCode::data, "{}: its hash is {}, the token file's {}",
            o.tokenizer, hex(tokenizer->hash()), hex(info.tokenizer_hash));
  }
  const Index shown = std::min<Index>(std::max(0, o.samples), file.documents());
  for (Index s = 0; s < shown; ++s) {
    const Index d = s * file.documents() / shown;
    const auto [begin, end] = file.document(d);
    std::vector<std::int32_t> ids(static_cast<std::size_t>(std::min(kPreview, end - begin)));
    file.read(begin, ids);
    std::string text;
    if (tokenizer)
      text = preview(tokenizer->decode(ids));
    else
      for (const auto id : ids) text += format("{} ", id);
    say("--- document {}, {} tokens\n{}", d, end - begin, text);
  }
  return ExitCode::ok;
}

}  // namespace

RunCommand add_data(CLI::App& command) {
  const auto o = std::make_shared<Options>();
  command.require_subcommand(1);

  CLI::App* train =
      command.add_subcommand("tokenizer", "Train a byte-level BPE and write Hugging Face's tokenizer.json");
  train->add_option("inputs", o->inputs, "Files or directories of .txt, .md, .rst, and .gz of them")->required();
  train->add_option("--vocab-size", o->vocab_size, "Tokens, the 256 bytes and the end of document included")
      ->required();
  train->add_option("--out", o->out, "tokenizer.json to write")->required();
  train->add_option("--split", o->split, "How text is cut into pieces before merging")
      ->check(CLI::IsMember({"gpt2", "llama3", "deepseek_v3"}))
      ->capture_default_str();
  train->add_option("--min-frequency", o->min_frequency, "Least number of occurrences of a pair that is merged")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  train->final_callback([o] { o->chosen = [o] { return train_tokenizer(*o); }; });

  CLI::App* tokens = command.add_subcommand("tokenize", "Turn text into token files");
  tokens->add_option("inputs", o->inputs, "Files or directories of .txt, .md, .rst, and .gz of them")->required();
  tokens->add_option("--tokenizer", o->tokenizer, "tokenizer.json")->required();
  tokens->add_option("--out", o->out, "Prefix of the token files: PREFIX-00000.h5 and on")->required();
  tokens->add_option("--eval-fraction", o->eval_fraction, "Share of the documents that is held out, chosen by content");
  tokens->add_option("--eval-out", o->eval_out, "Prefix of the held-out token files");
  tokens->final_callback([o] { o->chosen = [o] { return tokenize(*o); }; });

  CLI::App* show = command.add_subcommand("inspect", "Counts, checksums and samples of a token file");
  show->add_option("file", o->file, "Token file")->required();
  show->add_option("--tokenizer", o->tokenizer, "tokenizer.json, to show text instead of ids");
  show->add_option("--samples", o->samples, "Documents to show")->capture_default_str();
  show->final_callback([o] { o->chosen = [o] { return inspect(*o); }; });
  return [o] { return o->chosen(); };
}

}  // namespace dstrain
