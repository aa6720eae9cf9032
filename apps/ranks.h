#pragma once
// Runs the body of a command on this process's ranks.

#include <functional>

#include "lib/comm/world.h"

namespace dstrain {

// `ranks` > 0: that many thread ranks in this process; 0: the world of this process (MPI when launched, else one rank).
// Throws Error{usage} when thread ranks are asked for under a launcher.
// `limit`: seconds for MPI to start.
void run_ranks(int ranks, const std::function<void(World&)>& body, double limit = 600);

}  // namespace dstrain
