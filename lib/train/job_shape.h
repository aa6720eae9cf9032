#pragma once
// What a job says of its training step: batches, programs of the pipeline, places of ranks, what ops may do.

#include <string>

#include "kernels/op.h"
#include "lib/config/config.h"
#include "lib/mesh/mesh.h"
#include "lib/model/build.h"
#include "lib/pipeline/schedule.h"

namespace dstrain {

// The part of a step that every rank must know the same of: counts of micro-batches follow from the config alone.
struct StepShape {
  Index micro_batches = 0;  // a step and data rank
  Index micro_batch_size = 0;
  Index length = 0;
};
StepShape step_shape(const Config& config);

// Pipeline programs by `schedule`, for all stages: of a step's micro-batches, and of one.
Program job_program(const Config& config, const std::string& schedule);
Program single_program(const Config& config, const std::string& schedule);
// Of the job's training step.
Program train_program(const Config& config);

// What the rank at `at` holds of the model, with so many modules of multi-token prediction.
StagePlace stage_place(const Config& config, const Coordinates& at, Index mtp_depths);

// What the job lets its ops do.
ComputeSettings compute_settings(const Config& config);

}  // namespace dstrain
