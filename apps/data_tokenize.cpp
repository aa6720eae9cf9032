// dstrain data tokenize: text to token files.

#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <memory>
#include <optional>

#include "apps/data.h"
#include "apps/ranks.h"
#include "lib/comm/agree.h"
#include "lib/core/clock.h"
#include "lib/core/thread_pool.h"
#include "lib/data/tokenize.h"
#include "lib/observe/progress.h"

namespace dstrain {

namespace {

struct Options {
  std::vector<std::string> inputs;
  std::string out, tokenizer, eval_out;
  std::string documents = "file", key = "text";
  double eval_fraction = 0;
  Index tokens_per_file = kTokensPerFile;
  int threads = 0, ranks = 0;
};

// A line on standard error: rewritten on a terminal, else one every so many seconds.
class ProgressLine {
 public:
  void show(const TokenizeProgress& p) {
    const double now = system_clock().now(), seconds = now - begin_;
    if (now - shown_ < (terminal_ ? 0.5 : 30.0) || p.consumed == 0) return;
    shown_ = now;
    const double done = static_cast<double>(p.consumed) / static_cast<double>(p.total);
    std::string line =
        format("tokenize {:.1f}%  {} of {}  {} documents  {} tokens  {} left", 100 * done,
               human_bytes(static_cast<double>(p.consumed)), human_bytes(static_cast<double>(p.total)), p.documents,
               human_count(static_cast<double>(p.tokens)), human_seconds(seconds * (1 - done) / done));
    std::fprintf(stderr, terminal_ ? "\r%s\033[K" : "%s\n", line.c_str());
    open_ = terminal_;
  }
  void end() {
    if (std::exchange(open_, false)) std::fputc('\n', stderr);
  }
  ~ProgressLine() { end(); }
  double seconds() const { return system_clock().now() - begin_; }

 private:
  bool terminal_ = isatty(STDERR_FILENO) != 0;
  bool open_ = false;
  double begin_ = system_clock().now(), shown_ = begin_;
};

void print_side(const SideStatistics& s) {
  if (s.files.empty()) return;
  say("{}{}: {} documents, {} tokens, {:.1f} MB, {:.2f} bytes a token", s.files[0],
      s.files.size() > 1 ? " to " + s.files.back() : "", s.documents, s.tokens, static_cast<double>(s.bytes) / 1e6,
      static_cast<double>(s.bytes) / static_cast<double>(s.tokens));
}

void print_lengths(const TokenizeStatistics& all) {
  say("documents by length in tokens:");
  for (std::size_t i = 0; i < all.train.lengths.size(); ++i) {
    const Index n = all.train.lengths[i] + all.eval.lengths[i];
    if (n > 0) say("  {:>10} to {:<10} {:>12}", Index{1} << i, (Index{2} << i) - 1, n);
  }
}

// A prefix in one form, whatever its directory is called: through links and "..", from anywhere.
std::filesystem::path place_of(const std::string& prefix) {
  const std::filesystem::path path(prefix);
  std::error_code error;
  std::filesystem::path directory = std::filesystem::absolute(path, error).parent_path();
  if (auto real = std::filesystem::weakly_canonical(directory, error); !error) directory = std::move(real);
  return directory.lexically_normal() / path.filename();
}

ExitCode run(const Options& o) {
  const Files& files = system_files();
  require(o.eval_fraction >= 0 && o.eval_fraction < 1, ExitCode::usage, "--eval-fraction: {} is not in [0, 1)",
          o.eval_fraction);
  require((o.eval_fraction > 0) == !o.eval_out.empty(), ExitCode::usage,
          "--eval-fraction and --eval-out belong together");
  require(o.eval_out.empty() || place_of(o.eval_out) != place_of(o.out), ExitCode::usage,
          "--eval-out: {} must differ from --out, {}", o.eval_out, o.out);
  require(!o.key.empty(), ExitCode::usage, "--key: empty");
  run_ranks(o.ranks, [&](World& world) {
    std::vector<int> members;
    for (int r = 0; r < world.size(); ++r) members.push_back(r);
    const auto group = world.group(Poster::loader, GroupKind::control, members);
    std::optional<Tokenizer> tokenizer;
    TokenizeOptions options{.rule = document_rule(o.documents),
                            .key = o.key,
                            .out = o.out,
                            .eval_out = o.eval_out,
                            .eval_fraction = o.eval_fraction,
                            .tokens_per_file = o.tokens_per_file};
    Agreement(*group).together([&] {
      tokenizer.emplace(Tokenizer::load(files, o.tokenizer));
      options.texts = find_text(files, o.inputs);
    });
    const int threads = o.threads > 0 ? o.threads : std::max(1, available_cores() / world.local_size());
    ProgressLine line;
    const TokenizeResult result =
        tokenize(files, *tokenizer, options, threads, *group, [&](const TokenizeProgress& p) { line.show(p); });
    line.end();
    if (world.rank() != 0) return;
    const TokenizeStatistics& all = result.statistics;
    print_side(all.train);
    print_side(all.eval);
    print_lengths(all);
    if (all.empty > 0) say("{} empty documents left out", all.empty);
    if (result.complete)
      say("all of this was there before: nothing to do");
    else if (result.resumed > 0)
      say("{} documents were in token files of an earlier run", result.resumed);
    const double tokens = static_cast<double>(all.train.tokens + all.eval.tokens);
    if (!result.complete && result.resumed == 0)
      say("{:.1f} million tokens in {:.1f} s on {} rank(s) of {} thread(s): {:.2f} million tokens/s", tokens / 1e6,
          line.seconds(), world.size(), threads, tokens / line.seconds() / 1e6);
  });
  return ExitCode::ok;
}

}  // namespace

RunCommand add_data_tokenize(CLI::App& command) {
  const auto o = std::make_shared<Options>();
  command
      .add_option("inputs", o->inputs,
                  "Files, directories or globs of .txt, .md, .rst and .jsonl, each plain, .gz or .zst")
      ->required();
  command.add_option("--tokenizer", o->tokenizer, "tokenizer.json")->required();
  command.add_option("--out", o->out, "Prefix of the token files: PREFIX-00000.h5 and on")->required();
  command
      .add_option(
          "--documents", o->documents,
          "What a document is in .txt, .md and .rst: the file, what blank lines separate, or a line; .jsonl has "
          "one a line")
      ->check(CLI::IsMember({"file", "blank-line", "record"}))
      ->capture_default_str();
  command.add_option("--key", o->key, "Key of the text in .jsonl")->capture_default_str();
  command.add_option("--eval-fraction", o->eval_fraction, "Share of the documents that is held out, chosen by content");
  command.add_option("--eval-out", o->eval_out, "Prefix of the held-out token files");
  command.add_option("--tokens-per-file", o->tokens_per_file, "A file is cut at the first document end past it")
      ->check(CLI::Range(Index{1}, kTokensPerFile))
      ->capture_default_str();
  command.add_option("--threads", o->threads, "Threads a rank; 0: the cores, shared by the host's ranks")
      ->check(CLI::Range(0, 4096));
  command.add_option("--ranks", o->ranks, "Ranks as threads of this process")->check(CLI::Range(1, 256));
  return [o] { return run(*o); };
}

}  // namespace dstrain
