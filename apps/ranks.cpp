#include "apps/ranks.h"

#include "lib/comm/launcher.h"

namespace dstrain {

void run_ranks(int ranks, const std::function<void(World&)>& body, double limit) {
  if (ranks > 0) {
    require(!launched_by_mpi(), ExitCode::usage, "--ranks makes ranks of threads: not under a launcher");
    run_threads(ranks, body);
    return;
  }
  require(slurm_tasks() == 1 || launched_by_mpi(), ExitCode::usage,
          "srun has started {} tasks, and none of them knows of the others: srun needs --mpi=pmix", slurm_tasks());
  const auto world = World::make(limit);
  body(*world);
}

}  // namespace dstrain
