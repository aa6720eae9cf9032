// dstrain train JOB.yaml: the training loop on every rank of the world.

#include <algorithm>
#include <memory>
#include <mutex>

#include "apps/commands.h"
#include "apps/ranks.h"
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
    const Loaded loaded = load_config(system_files(), o->job, o->overrides);
    ExitCode code = ExitCode::ok;
    std::mutex mutex;
    run_ranks(o->ranks, [&](World& world) {
      const ExitCode mine = Trainer(resolve(loaded, world.size()), world, system_files(), system_clock()).run();
      const std::lock_guard lock(mutex);
      code = std::max(code, mine);
    });
    return code;
  };
}

}  // namespace dstrain
