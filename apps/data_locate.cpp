// dstrain data locate RUN --step N: which documents a step was trained on.

#include <algorithm>
#include <map>
#include <memory>
#include <string>
#include <utility>

#include "apps/data.h"
#include "lib/config/reader.h"
#include "lib/config/resolve.h"
#include "lib/data/sources.h"
#include "lib/observe/series.h"
#include "lib/train/run_directory.h"

namespace dstrain {

namespace {

struct Options {
  std::string run;
  Index step = 0;
};

// First sample of a step and one past its last. metrics.jsonl knows of the steps that were done; from the last known
// one on, steps are counted at the job's batch. The cursor moves by whole batches, skipped updates included.
std::pair<Index, Index> samples_of(const Files& files, const std::string& metrics, Index step, Index batch) {
  Index known_step = 0, known = 0;
  if (files.exists(metrics)) {
    const std::map<std::string, Series> all = read_metrics(files, metrics);
    if (const auto found = all.find("samples"); found != all.end()) {
      const Series& s = found->second;
      // Steps after a rollback may have passed over a batch; lines of older builds have no first sample.
      if (const auto own = all.find("first_sample"); own != all.end())
        for (std::size_t i = 0; i < own->second.steps.size(); ++i)
          if (own->second.steps[i] == step)
            for (std::size_t j = 0; j < s.steps.size(); ++j)
              if (s.steps[j] == step)
                return {static_cast<Index>(own->second.values[i]), static_cast<Index>(s.values[j])};
      for (std::size_t i = 0; i < s.steps.size() && s.steps[i] <= step; ++i) {
        const auto samples = static_cast<Index>(s.values[i]);
        if (s.steps[i] == step) return {known + (step - 1 - known_step) * batch, samples};
        known_step = s.steps[i];
        known = samples;
      }
    }
  }
  const Index first = known + (step - 1 - known_step) * batch;
  return {first, first + batch};
}

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

  const auto [first, stop_sample] = samples_of(files, RunDirectory(o.run).metrics(), o.step, t.global_batch_size);
  const bool of_job = stop_sample - first == t.global_batch_size;  // the job may have had another batch at that step
  const Index of_rank = t.global_batch_size / config.parallel.data;
  say("step {}: samples {} to {}", o.step, first, stop_sample);
  std::vector<Index> starts;
  for (Index i = first; i < stop_sample; ++i) {
    const Sample s = sampler.locate(i);
    TokenSource& source = sources[s.source];
    const Index rank = (i - first) / of_rank, micro_batch = (i - first) % of_rank / t.micro_batch_size;
    const std::string rows = of_job ? format("data rank {}, micro-batch {}; ", rank, micro_batch) : std::string();
    say("sample {}: {}{}, epoch {}, tokens {} to {}", i, rows,
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
