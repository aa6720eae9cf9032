// dstrain train JOB.yaml: the training loop on every rank of the world, and its end when ranks or signals end it.

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <future>
#include <memory>
#include <mutex>
#include <thread>

#include "apps/commands.h"
#include "apps/ranks.h"
#include "lib/config/resolve.h"
#include "lib/train/trainer.h"

namespace dstrain {

namespace {

constexpr double kMostSilence = 25;                        // seconds: a dead host is noticed within 30
constexpr auto kWriting = std::chrono::milliseconds(500);  // for exit.json: its disk may be what hangs

// The message, and exit.json, for a rank that ends from outside its loop.
void tell(const Watchdog::Ending& e, const std::string& directory) {
  std::fprintf(stderr, "dstrain: %s\n", e.text.c_str());
  std::fflush(stderr);
  // Two hosts that have lost each other both tell; the first word stays.
  if (!e.directory || system_files().exists(RunDirectory(directory).exit())) return;
  const auto written = std::make_shared<std::promise<void>>();
  const auto done = written->get_future();
  std::thread([written, directory, e] {
    RunDirectory(directory).write_exit(system_files(), e.code, e.text, e.step);
    written->set_value();
  }).detach();
  done.wait_for(kWriting);
}

}  // namespace

RunCommand add_train(CLI::App& command) {
  struct Options {
    std::string job;
    std::vector<std::string> overrides;
    int ranks = 0;
  };
  auto o = std::make_shared<Options>();
  command.add_option("job", o->job, "Job file")->required();
  command.add_option("overrides", o->overrides, "key=value ...");
  command.add_option("--ranks", o->ranks, "Ranks as threads of this process, for debugging")->check(CLI::Range(1, 256));
  return [o] {
    const StopSignal signal;  // from here on a signal stops the run in good order
    const Loaded loaded = load_config(system_files(), o->job, o->overrides);
    ExitCode code = ExitCode::ok;
    std::mutex mutex;
    std::once_flag told;
    run_ranks(
        o->ranks,
        [&](World& world) {
          const Config config = resolve(loaded, world.size());
          if (config.debug.collectives) world.check_collectives();
          const Mesh mesh(mesh_sizes(config.parallel));
          Watchdog watchdog(
              world, system_clock(), &signal,
              {.silence = config.watchdog.limit > 0 ? std::min(config.watchdog.limit, kMostSilence) : kMostSilence,
               .members = [&](const std::string& group, int rank) { return members_by_name(mesh, group, rank); },
               .tell = [&](const Watchdog::Ending& e) { std::call_once(told, [&] { tell(e, config.run.dir); }); },
               .leave = [](ExitCode end) { std::_Exit(static_cast<int>(end)); }});
          const ExitCode mine =
              Trainer(config, world, system_files(), system_clock(), false, {.signal = &signal, .watchdog = &watchdog})
                  .run();
          const std::lock_guard lock(mutex);
          code = std::max(code, mine);
        },
        loaded.config.watchdog.start);
    return code;
  };
}

}  // namespace dstrain
