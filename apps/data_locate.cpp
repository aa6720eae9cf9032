// dstrain data locate RUN --step N: which documents a step was trained on.

#include <algorithm>
#include <memory>

#include "apps/data.h"
#include "lib/config/reader.h"
#include "lib/config/resolve.h"
#include "lib/data/sources.h"
#include "lib/train/run_directory.h"

namespace dstrain {

namespace {

struct Options {
  std::string run;
  Index step = 0;
};

ExitCode locate(const Options& o) {
  const Files& files = system_files();
  const std::string job = RunDirectory(o.run).job();
  require(files.exists(job), ExitCode::usage, "{}: no run here: {} does not exist", o.run, job);
  const Loaded loaded = load_config(files, job, {});
  const ParallelConfig& p = loaded.config.parallel;
  const Config config = resolve(loaded, static_cast<int>(p.data * p.tensor * p.context * p.pipeline));
  const TrainingConfig& t = config.training;
  require(o.step >= 1 && o.step <= t.steps, ExitCode::usage, "--step: {} is not in [1, {}], training.steps of {}",
          o.step, t.steps, job);
  TokenSources sources(files, config.data.train, config.model.vocab_size);
  const Sampler sampler = sources.sampler(t.sequence_length, config.run.seed, true);

  // The cursor moves by whole batches, skipped updates included.
  const Index first = (o.step - 1) * t.global_batch_size, of_rank = t.global_batch_size / config.parallel.data;
  say("step {}: samples {} to {}", o.step, first, first + t.global_batch_size);
  std::vector<Index> starts;
  for (Index i = first; i < first + t.global_batch_size; ++i) {
    const Sample s = sampler.locate(i);
    TokenSource& source = sources[s.source];
    const Index rank = (i - first) / of_rank, micro_batch = (i - first) % of_rank / t.micro_batch_size;
    say("sample {}: data rank {}, micro-batch {}; {}, epoch {}, tokens {} to {}", i, rank, micro_batch,
        config.data.train[static_cast<std::size_t>(s.source)].path, s.epoch, s.begin, s.begin + s.tokens);
    const Index end = s.begin + s.tokens;
    starts = {s.begin};
    source.document_starts(s.begin, end, starts);
    for (std::size_t d = 0; d < starts.size(); ++d) {
      const TokenSource::Place place = source.locate(starts[d]);
      const Index tokens = (d + 1 < starts.size() ? starts[d + 1] : end) - starts[d];
      const auto [begin, stop] = source.file(place.file).document(place.document);
      say("  {} document {}: tokens {} to {} of the file, {} to {} of its {}", source.file(place.file).path(),
          place.document, place.token, place.token + tokens, place.token - begin, place.token - begin + tokens,
          stop - begin);
    }
  }
  return ExitCode::ok;
}

}  // namespace

RunCommand add_data_locate(CLI::App& command) {
  const auto o = std::make_shared<Options>();
  command.add_option("run", o->run, "Run directory")->required();
  command.add_option("--step", o->step, "Step, from 1")->required();
  return [o] { return locate(*o); };
}

}  // namespace dstrain
