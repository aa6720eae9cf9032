#pragma once
// Proof that all ranks see the same run directory.

#include <string>

#include "lib/comm/agree.h"
#include "lib/core/clock.h"
#include "lib/core/files.h"

namespace dstrain {

// Rank 0 writes a number that nobody else knows into the directory, and every rank reads it. Collective; throws
// Error{usage} on all ranks, naming the host that sees another directory and the path. A network file system gets some
// seconds to show the file.
void prove_shared(const Files& files, const Clock& clock, const std::string& directory, const std::string& host_name,
                  Agreement& everyone, double patience = 5);

}  // namespace dstrain
