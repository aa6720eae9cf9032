#include "apps/plan_text.h"

#include <algorithm>

#include "lib/observe/progress.h"

namespace dstrain {

namespace {

std::string bytes(std::size_t n) { return human_bytes(static_cast<double>(n)); }
std::string left(const std::string& s, std::size_t width) {
  return s + std::string(width - std::min(width, s.size()), ' ');
}
std::string right(const std::string& s, std::size_t width) {
  return std::string(width - std::min(width, s.size()), ' ') + s;
}

}  // namespace

std::string plan_text(const Config& config, const Plan& plan) {
  std::string text;
  const auto line = [&](const char* name, const std::string& what) { text += left(name, 11) + what + "\n"; };
  line("mesh", format("{}: {} rank(s)", plan.mesh.sizes().to_string(), plan.mesh.ranks()));
  line("model", format("{}, {} parameters ({})", config.model.type, human_count(static_cast<double>(plan.parameters)),
                       plan.parameters));
  line("step",
       format("{} samples of {} tokens: {} micro-batch(es) of {} a data rank", config.training.global_batch_size,
              plan.shape.length, plan.shape.micro_batches, plan.shape.micro_batch_size));
  line("FLOPs", format("{} a token (causal attention at half), {} (full); forward and backward",
                       human_count(plan.flops_per_token), human_count(plan.flops_per_token_full)));
  line("schedule", format("{}: bubble {:.1f}% with equal stages, {:.1f}% with the stages' own costs",
                          config.parallel.schedule, 100 * plan.bubble, 100 * plan.bubble_with_costs));

  const bool gpu = plan.target == Device::cuda;
  text += "\n" + left("stage", 7) + left("tensor", 9) + left("layers", 8) + left("rank", 9) + right("parameters", 12);
  for (const MemoryRow& row : plan.ranks.front().memory)
    text += " " + right(row.host ? row.purpose + " (host)" : row.purpose, 15);
  text += " " + right(gpu ? "GPU total" : "total", 12) + "\n";
  for (const RankPlan& r : plan.ranks) {
    text +=
        format("{:<6} {:<8} {:>3}-{:<3} {:<8} ", r.at.pipeline, r.at.tensor, r.layers.begin, r.layers.end - 1, r.rank);
    text += right(human_count(static_cast<double>(r.parameters)), 12);
    std::size_t total = 0;
    for (const MemoryRow& row : r.memory) {
      text += " " + right(bytes(row.bytes), 15);
      total += row.host ? 0 : row.bytes;
    }
    text += " " + right(bytes(total), 12) + "\n";
  }
  text += "\nEvery data rank has the memory of its stage and tensor rank. Bytes sent a step by rank 0:\n";
  for (const auto& [group, sent] : plan.ranks.front().step.communication)
    text += "  " + left(group, 12) + " " + human_bytes(sent) + "\n";
  return text;
}

}  // namespace dstrain
