#pragma once
// The step run dry, for the ranks that differ: what `dstrain plan` prints and what a run allocates.

#include <vector>

#include "lib/train/engine.h"

namespace dstrain {

struct RankPlan {
  int rank = 0;
  Coordinates at;
  LayerRange layers;
  Index parameters = 0;  // owned by this rank
  Index spread = 0;      // of them, in experts that are spread over expert ranks
  EngineSizes sizes;
  // The engine's rows, then batches of the loader, and of the checkpointer what a snapshot holds on a GPU, if anything,
  // and the snapshot.
  std::vector<MemoryRow> memory;
  Ledger step;  // of one training step on this rank
};

struct Plan {
  Device target = Device::cpu;
  Mesh mesh{MeshSizes{}};
  StepShape shape;
  std::vector<RankPlan> ranks;  // one a pipeline stage and tensor rank, of data rank 0
  Program program;
  double bubble = 0;             // of the schedule with equal stages
  double bubble_with_costs = 0;  // 1 - work / (stages * time) when every stage takes what its FLOPs say
  Index parameters = 0;          // of the model
  double flops_per_token = 0;    // a training step's, causal attention at half
  double flops_per_token_full = 0;
};

MeshSizes mesh_sizes(const ParallelConfig& parallel);
// Plans one rank of a resolved job for `target`, cpu or cuda. For generation `cache_length` positions of each of a
// micro-batch's samples are cached, and training.sequence_length is the longest prompt's.
RankPlan plan_rank(const Config& config, const Mesh& mesh, int rank, Device target, EngineUse use = EngineUse::training,
                   Index cache_length = 0);
// Plans every rank that differs from others.
Plan make_plan(const Config& config, Device target);

}  // namespace dstrain
