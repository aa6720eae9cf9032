// dstrain bench checkpoint: the stall of an asynchronous save against one copy of the state, and the synchronous save.

#include <cstdio>

#include "apps/bench.h"
#include "lib/comm/agree.h"
#include "lib/core/files.h"
#include "lib/observe/progress.h"
#include "lib/train/ceiling.h"
#include "lib/train/checkpointer.h"

namespace dstrain {

namespace {

// A directory of this bench's own, removed with all that is in it. Every rank has one; the first rank makes it.
class ScratchDirectory {
 public:
  ScratchDirectory(std::string path, ProcessGroup& everyone) : path_(std::move(path)), first_(everyone.rank() == 0) {
    Agreement(everyone).together([&] {
      if (!first_) return;
      require(!system_files().exists(path_), ExitCode::write, "{}: is there already; remove it or name another --dir",
              path_);
      system_files().make_directory(path_);
      made_ = true;
    });
  }
  ~ScratchDirectory() {
    if (!made_) return;
    try {
      remove_tree(system_files(), path_);
    } catch (const Error&) {  // what was measured is still right
    }
  }
  ScratchDirectory(const ScratchDirectory&) = delete;
  ScratchDirectory& operator=(const ScratchDirectory&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
  bool first_;
  bool made_ = false;
};

struct Saves {
  std::vector<double> stall;         // seconds that training stood still
  std::vector<double> total;         // seconds until the checkpoint was durable
  std::vector<double> steps;         // seconds of steps while no save was under way
  std::vector<double> steps_during;  // of steps while one was
  std::vector<double> copy_rate;     // bytes a second, measured between the saves
  std::uint64_t bytes = 0;           // written by all ranks
};

double seconds_of(const std::function<void()>& work) {
  const double begin = system_clock().now();
  work();
  return system_clock().now() - begin;
}

// Trains and saves `repeats` times.
Saves measure(BenchJob& job, const Config& config, const std::string& directory, int repeats) {
  Checkpointer checkpointer(config, system_files(), system_clock(), directory, *job.world, *job.engine);
  CheckpointState state{.seed = config.run.seed, .config_hash = job_identity(config), .mesh = job.mesh.sizes()};
  Saves saves;
  for (int i = 0; i < repeats; ++i) {
    saves.copy_rate.push_back(measure_copy_rate(job.engine->stream(), checkpointer.snapshot_bytes()));
    saves.steps.push_back(seconds_of([&] { job.step(); }));
    ++state.step;
    ++state.optimizer_step;
    saves.stall.push_back(checkpointer.save(state).total());
    // Every rank takes the same number of steps, or they would wait for each other: one that surely overlaps.
    if (config.checkpoint.async) saves.steps_during.push_back(seconds_of([&] { job.step(); }));
    for (const Checkpointer::Outcome& outcome : checkpointer.finish()) {
      if (outcome.error) std::rethrow_exception(outcome.error);
      saves.total.push_back(outcome.seconds);
      saves.bytes = outcome.bytes;
    }
  }
  return saves;
}

ExitCode bench_checkpoint(const JobOptions& options, const std::string& where, int repeats) {
  BenchJob job(options);
  const Groups groups = make_groups(*job.world, job.mesh, Poster::trainer);
  const ScratchDirectory directory(where.empty() ? job.config.run.dir + ".bench" : where, *groups.control);
  Config config = job.config;
  config.checkpoint.async = true;
  const Saves async = measure(job, config, directory.path() + "/async", repeats);
  config.checkpoint.async = false;
  const Saves sync = measure(job, config, directory.path() + "/sync", repeats);
  if (job.world->rank() != 0) return ExitCode::ok;

  const auto state = static_cast<double>(Snapshot(job.engine->params(), job.engine->groups(), 0).bytes());
  const double rate = quantile(async.copy_rate, 0.5), copy = state / rate;
  const double stall = quantile(async.stall, 0.5), whole = quantile(sync.stall, 0.5);
  std::printf("job          %s: %d rank(s) of %d thread(s); %d saves each, medians\n", options.job.c_str(),
              job.world->size(), job.engine->pool().threads(), repeats);
  std::printf("state        %s of this rank; checkpoint of all ranks %s\n", human_bytes(state).c_str(),
              human_bytes(static_cast<double>(async.bytes)).c_str());
  std::printf("copy         %.1f ms: memcpy of as many bytes, same threads, same run: %.2f GB/s\n", 1e3 * copy,
              rate / 1e9);
  std::printf("stall        %.1f ms (worst %.1f): asynchronous save\n", 1e3 * stall, 1e3 * quantile(async.stall, 1));
  std::printf("ratio        %.2f copies of the state\n", stall / copy);
  std::printf("synchronous  %.1f ms; the stall is %.1f%% of it\n", 1e3 * whole, 100 * stall / whole);
  std::printf("write        %.1f ms in the back to a durable checkpoint; a step meanwhile %.1f ms, otherwise %.1f ms\n",
              1e3 * quantile(async.total, 0.5), 1e3 * quantile(async.steps_during, 0.5),
              1e3 * quantile(async.steps, 0.5));
  return ExitCode::ok;
}

}  // namespace

RunCommand add_bench_checkpoint(CLI::App& command) {
  struct Options {
    JobOptions job;
    std::string directory;
    int repeats = 5;
  };
  auto o = std::make_shared<Options>();
  o->job.declare(command);
  command.add_option("--dir", o->directory, "Directory to make, write to and remove [run.dir with .bench behind it]");
  command.add_option("--repeats", o->repeats, "Saves of each kind")->check(CLI::Range(1, 100))->capture_default_str();
  return [o] { return bench_checkpoint(o->job, o->directory, o->repeats); };
}

}  // namespace dstrain
