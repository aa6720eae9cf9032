// dstrain plan JOB.yaml: the step run dry. Needs no peers and no device.

#include <cstdio>
#include <memory>

#include "apps/commands.h"
#include "apps/plan_text.h"
#include "lib/config/resolve.h"
#include "lib/core/files.h"
#include "lib/train/evaluate.h"
#include "lib/train/machine.h"

namespace dstrain {

namespace {

// How often training.steps read each source. A plan needs no data: what cannot be read is said and left out; but a run
// that its data cannot feed is an error here too.
void print_sources(const Config& config) {
  if (config.data.train.empty()) return;
  std::printf("\ndata.train over training.steps:\n");
  std::unique_ptr<TokenSources> sources;
  try {
    sources = std::make_unique<TokenSources>(system_files(), config.data.train, config.model.vocab_size);
  } catch (const Error& e) {
    std::printf("  not known here: %s\n", e.what());
    return;
  }
  for (const std::string& line : describe_sources(config, *sources, train_sampler(config, *sources)))
    std::printf("  %s\n", line.c_str());
}

}  // namespace

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
    print_sources(config);
    return ExitCode::ok;
  };
}

}  // namespace dstrain
