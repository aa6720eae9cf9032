// dstrain bench tokenizer: megabytes and tokens a second and core, on 1, 2, 4 ... threads.

#include <cstdio>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "apps/bench.h"
#include "lib/core/clock.h"
#include "lib/core/files.h"
#include "lib/core/thread_pool.h"
#include "lib/tokenizer/tokenizer.h"

namespace dstrain {

namespace {

struct Options {
  std::vector<std::string> files;
  std::string tokenizer;
  int threads = 0;  // 0: all cores
  int repeat = 3;
};

// The texts: one for each line of the files.
std::vector<std::string> read_lines(const std::vector<std::string>& paths) {
  std::vector<std::string> lines;
  for (const std::string& path : paths) {
    const std::string text = read_file(system_files(), path);
    for (std::size_t at = 0; at < text.size();) {
      const std::size_t end = std::min(text.find('\n', at), text.size() - 1) + 1;
      lines.push_back(text.substr(at, end - at));
      at = end;
    }
  }
  require(!lines.empty(), ExitCode::data, "{}: no text", paths.front());
  return lines;
}

ExitCode bench_tokenizer(const Options& o) {
  const Tokenizer tokenizer = Tokenizer::load(system_files(), o.tokenizer);
  const std::vector<std::string> lines = read_lines(o.files);
  double bytes = 0;
  for (const auto& line : lines) bytes += static_cast<double>(line.size());
  const int most = o.threads > 0 ? o.threads : available_cores();
  std::printf("%zu lines, %.1f MB, %s\n%8s %10s %14s %20s %8s\n", lines.size(), bytes / 1e6, o.tokenizer.c_str(),
              "threads", "MB/s", "tokens/s", "tokens/s and core", "scaling");
  double one = 0;
  for (int threads = 1; threads <= most; threads = threads < most ? std::min(2 * threads, most) : threads + 1) {
    ThreadPool pool(threads);
    double best = 0;
    std::size_t tokens = 0;
    for (int r = 0; r < o.repeat; ++r) {
      // Fresh encoders: caches are filled within the time that is taken.
      std::vector<std::size_t> count(static_cast<std::size_t>(threads));
      const double begin = system_clock().now();
      pool.parallel_for(threads, [&](std::int64_t t) {
        Encoder encoder(tokenizer);
        std::vector<std::int32_t> ids;
        std::size_t n = 0;
        for (auto i = static_cast<std::size_t>(t); i < lines.size(); i += static_cast<std::size_t>(threads)) {
          ids.clear();
          encoder.encode(lines[i], ids);
          n += ids.size();
        }
        count[static_cast<std::size_t>(t)] = n;
      });
      const double seconds = system_clock().now() - begin;
      if (r == 0 || seconds < best) best = seconds;
      tokens = 0;
      for (const std::size_t n : count) tokens += n;
    }
    const double rate = static_cast<double>(tokens) / best;
    if (threads == 1) one = rate;
    std::printf("%8d %10.1f %14.0f %20.0f %8.2f\n", threads, bytes / best / 1e6, rate, rate / threads, rate / one);
  }
  return ExitCode::ok;
}

}  // namespace

RunCommand add_bench_tokenizer(CLI::App& command) {
  const auto o = std::make_shared<Options>();
  command.add_option("files", o->files, "Text; each line is encoded alone")->required();
  command.add_option("--tokenizer", o->tokenizer, "tokenizer.json")->required();
  command.add_option("--threads", o->threads, "Most threads; 0 is every core")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  command.add_option("--repeat", o->repeat, "Times to run; the best counts")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  return [o] { return bench_tokenizer(*o); };
}

}  // namespace dstrain
