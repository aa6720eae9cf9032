#include "apps/watch.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <future>
#include <memory>
#include <string>
#include <thread>

#include "lib/core/to_error.h"
#include "lib/train/run_directory.h"

namespace dstrain {

namespace {

constexpr double kMostSilence = 25;                        // seconds: a dead host is noticed within 30
constexpr double kSettle = 1.0;                            // seconds for the watchdog to find who is lost
constexpr auto kWriting = std::chrono::milliseconds(500);  // for exit.json: its disk may be what hangs

// The message, and exit.json, for a rank that ends from outside its loop.
void tell(const Watchdog::Ending& e, const std::string& directory) {
  std::fprintf(stderr, "dstrain: %s\n", e.text.c_str());
  std::fflush(stderr);
  // Two hosts that have lost each other both tell; the first word stays.
  if (!e.directory || system_files().exists(RunDirectory(directory).exit())) return;
  const auto written = std::make_shared<std::promise<void>>();
  const auto done = written->get_future();
  std::thread([written, run = RunDirectory(directory), e] {
    run.write_exit(system_files(), e.code, e.text, e.step);
    written->set_value();
  }).detach();
  done.wait_for(kWriting);
}

}  // namespace

Watchdog::Options watchdog_options(const Config& config, const Mesh& mesh, std::once_flag& told) {
  const double limit = config.watchdog.limit;
  return {.silence = limit > 0 ? std::min(limit, kMostSilence) : kMostSilence,
          .start = config.watchdog.start,
          .members = [&mesh](const std::string& group, int rank) { return members_by_name(mesh, group, rank); },
          .tell = [&told, directory = config.run.dir](
                      const Watchdog::Ending& e) { std::call_once(told, [&] { tell(e, directory); }); },
          .leave = [](ExitCode end) { std::_Exit(static_cast<int>(end)); }};
}

void run_watched(World& world, const Config& config, const Mesh& mesh, std::once_flag& told,
                 const std::function<void(Whereabouts* here)>& body) {
  Watchdog watchdog(world, system_clock(), nullptr, watchdog_options(config, mesh, told));
  try {
    body(&watchdog.here());
  } catch (const std::exception& e) {
    const ExitCode code = to_error(e).code();
    if (code == ExitCode::lost) watchdog.settle(kSettle);
    watchdog.announce(code);
    throw;
  }
  watchdog.finish();
}

}  // namespace dstrain
