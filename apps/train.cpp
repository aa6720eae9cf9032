// dstrain train JOB.yaml: the training loop on every rank of the world, and its end when ranks or signals end it.

#include <algorithm>
#include <memory>
#include <mutex>

#include "apps/commands.h"
#include "apps/ranks.h"
#include "apps/watch.h"
#include "lib/config/resolve.h"
#include "lib/train/trainer.h"

namespace dstrain {

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
          Watchdog watchdog(world, system_clock(), &signal, watchdog_options(config, mesh, told));
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
