#pragma once
// Runs one rank's part of a program. One loop, one switch; it knows no schedule by name.

#include <span>

#include "lib/comm/process_group.h"
#include "lib/pipeline/action.h"
#include "lib/pipeline/stage.h"

namespace dstrain {

// Runs the actions of rank pipeline.rank() over the micro-batches, program.micro_batches of them. The first backward of
// the program overwrites parameter gradients, later ones add; options.write is ignored. REQUIRES: the program has no
// violations, one chunk a rank, and stage.slots() covers its slots.
void execute(const Program& program, Stage& stage, ProcessGroup& pipeline, Stream& stream,
             std::span<const Batch> micro_batches, PassOptions options);

}  // namespace dstrain
