#pragma once
// Which of the machine's processors a rank runs on, and their peak rates.

#include <memory>

#include "lib/train/plan.h"

namespace dstrain {

// The threads of a rank's pool: run.threads; else the cores that the launcher bound the rank to; else the host's cores
// divided by its ranks.
int pool_threads(const Config& config, const World& world);

// The device that the job asks for: auto is cuda when this build and machine have it. Throws Error{device} when cuda is
// asked for and there is none.
Device run_device(const Config& config);
// The device that a plan is for: cuda too where there is none.
Device planned_device(const Config& config);

// On CUDA gives this rank its GPU and lets the world choose how GPUs talk. Collective; before any Engine is made.
void use_device(const Config& config, World& world, Device device);

// An engine of the planned sizes on `device`. A GPU that is too small is reported with what the plan counts.
std::unique_ptr<Engine> make_engine(const Config& config, World& world, const Mesh& mesh, Device device, int threads);
std::unique_ptr<Engine> make_engine(const Config& config, World& world, const Mesh& mesh, Device device, int threads,
                                    const RankPlan& plan, EngineUse use = EngineUse::training);

// Throws Error{device} when the host memory that the plan counts, times the ranks of this host, is more than there is:
// page by page it would be found out much later, by a killed process.
void require_host_memory(const RankPlan& plan, const World& world, Device device, std::uint64_t available);

// The vendor's dense peak of this thread's GPU in FLOP/s for the job's precision, by its name; 0 when the name is not
// in the table or there is no GPU: then a measured matmul rate takes its place.
double peak_flops(const Config& config, Device device);

}  // namespace dstrain
