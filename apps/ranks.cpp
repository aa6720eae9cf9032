#include "apps/ranks.h"

#include <cstdlib>

namespace dstrain {

void run_ranks(int ranks, const std::function<void(World&)>& body) {
  if (ranks > 0) {
    for (const char* name : {"OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_RANK"})
      require(std::getenv(name) == nullptr, ExitCode::usage, "--ranks makes ranks of threads: not under a launcher");
    run_threads(ranks, body);
    return;
  }
  const auto world = World::make();
  body(*world);
}

int launched_rank() {
  for (const char* name : {"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK"})
    if (const char* value = std::getenv(name)) return std::atoi(value);
  return 0;
}

}  // namespace dstrain
