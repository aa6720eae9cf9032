// dstrain plan JOB.yaml: the step run dry. Needs no peers and no device.

#include <cstdio>
#include <memory>

#include "apps/commands.h"
#include "lib/config/resolve.h"
#include "lib/core/files.h"
#include "lib/observe/progress.h"
#include "lib/train/machine.h"

namespace dstrain {

namespace {

std::string bytes(std::size_t n) { return human_bytes(static_cast<double>(n)); }

void print(const Config& config, const Plan& plan) {
  std::printf("mesh       %s: %d rank(s)\n", plan.mesh.sizes().to_string().c_str(), plan.mesh.ranks());
  std::printf("model      %s, %s parameters (%lld)\n", config.model.type.c_str(),
              human_count(static_cast<double>(plan.parameters)).c_str(), static_cast<long long>(plan.parameters));
  std::printf("step       %lld samples of %lld tokens: %lld micro-batch(es) of %lld a data rank\n",
              static_cast<long long>(config.training.global_batch_size), static_cast<long long>(plan.shape.length),
              static_cast<long long>(plan.shape.micro_batches), static_cast<long long>(plan.shape.micro_batch_size));
  std::printf("FLOPs      %s a token (causal attention at half), %s (full); forward and backward\n",
              human_count(plan.flops_per_token).c_str(), human_count(plan.flops_per_token_full).c_str());
  std::printf("schedule   %s: bubble %.1f%% with equal stages, %.1f%% with the stages' own costs\n",
              config.parallel.schedule.c_str(), 100 * plan.bubble, 100 * plan.bubble_with_costs);

  std::printf("\n%-6s %-8s %-7s %-8s %12s", "stage", "tensor", "layers", "rank", "parameters");
  const bool gpu = plan.target == Device::cuda;
  for (const MemoryRow& row : plan.ranks.front().memory)
    std::printf(" %15s", (row.host ? row.purpose + " (host)" : row.purpose).c_str());
  std::printf(" %12s\n", gpu ? "GPU total" : "total");
  for (const RankPlan& r : plan.ranks) {
    std::printf("%-6d %-8d %3lld-%-3lld %-8d %12s", r.at.pipeline, r.at.tensor, static_cast<long long>(r.layers.begin),
                static_cast<long long>(r.layers.end - 1), r.rank,
                human_count(static_cast<double>(r.parameters)).c_str());
    std::size_t total = 0;
    for (const MemoryRow& row : r.memory) {
      std::printf(" %15s", bytes(row.bytes).c_str());
      total += row.host ? 0 : row.bytes;
    }
    std::printf(" %12s\n", bytes(total).c_str());
  }
  std::printf("\nEvery data rank has the memory of its stage and tensor rank. Bytes sent a step by rank 0:\n");
  for (const auto& [group, sent] : plan.ranks.front().step.communication)
    std::printf("  %-12s %s\n", group.c_str(), human_bytes(sent).c_str());
}

}  // namespace

RunCommand add_plan(CLI::App& command) {
  struct Options {
    std::string job;
    std::vector<std::string> overrides;
    int ranks = 1;
  };
  auto o = std::make_shared<Options>();
  command.add_option("job", o->job, "Job file")->required();
  command.add_option("overrides", o->overrides, "key=value ...");
  command.add_option("--ranks", o->ranks, "Ranks to plan for")->check(CLI::Range(1, 1 << 20))->capture_default_str();
  return [o] {
    const Config config = resolve(load_config(system_files(), o->job, o->overrides), o->ranks);
    print(config, make_plan(config, planned_device(config)));
    return ExitCode::ok;
  };
}

}  // namespace dstrain
