// dstrain data tokenize: text to token files.

#include <memory>
#include <optional>

#include "apps/data.h"
#include "lib/core/clock.h"
#include "lib/data/token_file.h"
#include "lib/tokenizer/tokenizer.h"

namespace dstrain {

namespace {

struct Options {
  std::vector<std::string> inputs;
  std::string out, tokenizer, eval_out;
  double eval_fraction = 0;
};

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

}  // namespace

RunCommand add_data_tokenize(CLI::App& command) {
  const auto o = std::make_shared<Options>();
  command.add_option("inputs", o->inputs, "Files or directories of .txt, .md, .rst, and .gz of them")->required();
  command.add_option("--tokenizer", o->tokenizer, "tokenizer.json")->required();
  command.add_option("--out", o->out, "Prefix of the token files: PREFIX-00000.h5 and on")->required();
  command.add_option("--eval-fraction", o->eval_fraction, "Share of the documents that is held out, chosen by content");
  command.add_option("--eval-out", o->eval_out, "Prefix of the held-out token files");
  return [o] { return tokenize(*o); };
}

}  // namespace dstrain
