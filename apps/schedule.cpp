#include <cstdio>
#include <memory>

#include "apps/commands.h"
#include "lib/core/files.h"
#include "lib/pipeline/schedule.h"
#include "lib/pipeline/simulate.h"
#include "lib/pipeline/text.h"

namespace dstrain {

namespace {

struct Options {
  std::string name, svg;
  int stages = 4;
  int micro_batches = 8;
  bool actions = false;
  Costs costs;
};

ExitCode run(const Options& o) {
  require(o.costs.forward >= 1 && o.costs.backward >= 0 && o.costs.communication >= 0, ExitCode::usage,
          "--forward must be at least 1, --backward and --communication not negative");
  const Program program = make_schedule(o.name, o.stages, o.micro_batches);
  const Simulation simulation = simulate(program, o.costs);
  check(simulation.deadlock.empty(), "schedule {}: {}", o.name, simulation.deadlock);
  if (o.actions) std::fputs(to_text(program).c_str(), stdout);
  std::fputs(timeline_text(program, simulation).c_str(), stdout);
  std::string live;
  for (const int slots : simulation.peak_slots) live.append(" ").append(std::to_string(slots));
  std::printf("bubble %.2f%%, %g time units; live micro-batches by stage:%s\n", 100 * simulation.bubble,
              simulation.total, live.c_str());
  if (!o.svg.empty()) write_file_atomically(system_files(), o.svg, timeline_svg(program, simulation));
  return ExitCode::ok;
}

}  // namespace

RunCommand add_schedule(CLI::App& command) {
  const auto o = std::make_shared<Options>();
  std::string names;
  for (const ScheduleEntry& e : schedules())
    names.append(names.empty() ? "" : "; ").append(e.name).append(": ").append(e.help);
  command.add_option("name", o->name, names)->required();
  command.add_option("--stages", o->stages, "Pipeline stages")->required();
  command.add_option("--microbatches", o->micro_batches, "Micro-batches a step")->required();
  command.add_option("--forward", o->costs.forward, "Time units of a forward")->capture_default_str();
  command.add_option("--backward", o->costs.backward, "Time units of a backward")->capture_default_str();
  command.add_option("--communication", o->costs.communication, "Time units of a transfer")->capture_default_str();
  command.add_option("--svg", o->svg, "Also draw the timeline into this file");
  command.add_flag("--actions", o->actions, "Also print every rank's list of actions");
  return [o] { return run(*o); };
}

}  // namespace dstrain
