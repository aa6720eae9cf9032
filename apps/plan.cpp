// dstrain plan JOB.yaml: the step run dry. Needs no peers and no device.

#include <cstdio>
#include <memory>

#include "apps/commands.h"
#include "apps/plan_text.h"
#include "lib/config/resolve.h"
#include "lib/core/files.h"
#include "lib/train/machine.h"

namespace dstrain {

RunCommand add_plan(CLI::App& command) {
  struct Options {
    std::string job;
    std::vector<std::string> overrides;
    int ranks = 1;
  };
  auto o = std::make_shared<Options>();
  command.add_option("job", o->job, "Job file")->required();
  command.add_option("overrides", o->overrides, "key=value ...");
  command.add_option("--ranks", o->ranks, "Ranks to plan for")->check(CLI::Range(1, 1 << 20))->capture_default_str();
  return [o] {
    const Config config = resolve(load_config(system_files(), o->job, o->overrides), o->ranks);
    std::fputs(plan_text(config, make_plan(config, planned_device(config))).c_str(), stdout);
    return ExitCode::ok;
  };
}

}  // namespace dstrain
