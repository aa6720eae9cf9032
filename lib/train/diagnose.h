#pragma once
// Where numbers that are not finite come from.

#include <span>
#include <string>

#include "lib/comm/process_group.h"
#include "lib/train/engine.h"

namespace dstrain {

struct Culprit {
  std::string text;    // names tensor or op, layer and rank; the same on every rank
  int data_rank = -1;  // whose micro-batch shows it; -1: not known
  int micro_batch = -1;
};

// Collective; `everyone` is a control group of host messages. In this order: a weight that is not finite; the first op
// of a second pass over the step's batch whose output is not; a gradient of that pass; a gradient that the step left
// (`gradients_kept`: it is still there), when the second pass is finite. Leaves the gradients of a forward and backward
// in their memory and changes nothing else. Takes a second or so: every op is waited for.
Culprit find_culprit(Engine& engine, ProcessGroup& everyone, std::span<const Batch> micro_batches,
                     const ValidTokens& valid_tokens, bool gradients_kept);

}  // namespace dstrain
