// dstrain bench loader: the share of training in which it waits for data, on the job's own token files.

#include <algorithm>
#include <cstdio>

#include "apps/bench.h"
#include "lib/core/files.h"
#include "lib/train/evaluate.h"

namespace dstrain {

namespace {

ExitCode bench_loader(const JobOptions& options, int steps) {
  BenchJob job(options);
  const Config& config = job.config;
  const Groups groups = make_groups(*job.world, job.mesh, Poster::loader);
  TokenSources sources(system_files(), config.data.train, config.model.vocab_size);
  const Sampler sampler = sources.sampler(config.training.sequence_length, config.run.seed, true);
  Loader loader(sources, sampler, data_plan(config, job.engine->coordinates(), -1, job.device == Device::cuda),
                groups.replica->size() > 1 ? groups.replica.get() : nullptr);

  // As Trainer::train_step does it, the first batch, which nothing could prefetch, included.
  double wait = 0, worst = 0, first = 0;
  const double begin = system_clock().now();
  for (int i = 0; i < steps; ++i) {
    const StepData& data = loader.next(i * config.training.global_batch_size);
    job.engine->train_step(data.batches, valid_tokens(data), 1e-3, false);
    wait += data.wait_seconds;
    (i == 0 ? first : worst) = i == 0 ? data.wait_seconds : std::max(worst, data.wait_seconds);
  }
  const double wall = system_clock().now() - begin;
  if (job.world->rank() != 0) return ExitCode::ok;
  std::printf("job     %s: %d rank(s) of %d thread(s), %d steps\n", options.job.c_str(), job.world->size(),
              job.engine->pool().threads(), steps);
  std::printf("train   %.2f s\n", wall);
  std::printf("wait    %.3f ms in all; the first step %.3f ms, the worst other %.3f ms\n", 1e3 * wait, 1e3 * first,
              1e3 * worst);
  std::printf("share   %.4f%% of training\n", 100 * wait / wall);
  return ExitCode::ok;
}

}  // namespace

RunCommand add_bench_loader(CLI::App& command) {
  struct Options {
    JobOptions job;
    int steps = 50;
  };
  auto o = std::make_shared<Options>();
  o->job.declare(command);
  command.add_option("--steps", o->steps, "Steps to train")->check(CLI::Range(1, 100000))->capture_default_str();
  return [o] { return bench_loader(o->job, o->steps); };
}

}  // namespace dstrain
