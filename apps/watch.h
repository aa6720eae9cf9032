#pragma once
// Watchdogs of a command's ranks: what they tell, and how they end the process.

#include <functional>
#include <mutex>

#include "lib/comm/watchdog.h"
#include "lib/config/config.h"
#include "lib/mesh/mesh.h"

namespace dstrain {

// As a rank of the resolved job ends: one message on standard error, exit.json when the run directory is this run's,
// and the process with the code. `told` is of this process: one rank's thread tells. Everything is borrowed.
Watchdog::Options watchdog_options(const Config& config, const Mesh& mesh, std::once_flag& told);

// Runs the body of a command that writes to no run directory under a watchdog: when a rank is gone or silent, all end
// with Error{lost}'s code. `here` is where the body says what it does. Missing progress is not judged: whoever reads
// what the command prints may take all day. Collective.
void run_watched(World& world, const Config& config, const Mesh& mesh, std::once_flag& told,
                 const std::function<void(Whereabouts* here)>& body);

}  // namespace dstrain
