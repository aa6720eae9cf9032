#include "lib/train/machine.h"

#include <algorithm>

#include "lib/core/gpu.h"

namespace dstrain {

int pool_threads(const Config& config, const World& world) {
  if (config.run.threads > 0) return static_cast<int>(config.run.threads);
  // A launcher that binds each rank has shared the cores out already.
  const int cores = available_cores();
  return cores < online_cores() ? cores : std::max(1, cores / world.local_size());
}

Device run_device(const Config& config) {
  if (config.run.device == "cpu") return Device::cpu;
  if (gpu::count() > 0) return Device::cuda;
  require(config.run.device != "cuda", ExitCode::device, "run.device: cuda, but there is no GPU to use: {}",
          gpu::why_none());
  return Device::cpu;
}

Device planned_device(const Config& config) {
  if (config.run.device == "auto") return run_device(config);
  return config.run.device == "cuda" ? Device::cuda : Device::cpu;
}

void use_device(const Config& config, World& world, Device device) {
  if (device != Device::cuda) return;
  world.use_gpus({.nvls = config.cuda.nvls});
}

std::unique_ptr<Engine> make_engine(const Config& config, World& world, const Mesh& mesh, Device device, int threads) {
  return make_engine(config, world, mesh, device, threads, plan_rank(config, mesh, world.rank(), device));
}

std::unique_ptr<Engine> make_engine(const Config& config, World& world, const Mesh& mesh, Device device, int threads,
                                    const RankPlan& plan, EngineUse use) {
  try {
    return std::make_unique<Engine>(config, world, mesh, device, device, threads, plan.sizes, use);
  } catch (const Error& e) {
    if (e.code() != ExitCode::device || device != Device::cuda) throw;
    std::size_t total = 0;
    for (const MemoryRow& row : plan.memory)
      if (!row.host) total += row.bytes;
    fail(ExitCode::device, "rank {}: {}; the plan counts {} bytes in all (see dstrain plan)", world.rank(), e.what(),
         total);
  }
}

void require_host_memory(const RankPlan& plan, const World& world, Device device, std::uint64_t available) {
  std::uint64_t bytes = 0;
  const MemoryRow* largest = nullptr;
  for (const MemoryRow& row : plan.memory) {
    if (device == Device::cuda && !row.host) continue;
    bytes += row.bytes;
    if (!largest || row.bytes > largest->bytes) largest = &row;
  }
  const std::uint64_t all = bytes * static_cast<std::uint64_t>(world.local_size());
  require(all <= available, ExitCode::device,
          "host memory is short: the plan counts {} bytes a rank, the most of them ({}) for {}, and {} rank(s) of this "
          "host need {}; {} bytes are available",
          bytes, largest ? largest->bytes : 0, largest ? largest->purpose : "nothing", world.local_size(), all,
          available);
}

double peak_flops(const Config& config, Device device) {
  if (device != Device::cuda) return 0;
  struct Row {
    const char* name;  // part of what the driver calls the card
    double bf16, tf32, f32;
  };
  // NVIDIA's data sheets, dense.
  constexpr Row kRows[] = {{"H100 PCIe", 756e12, 378e12, 51e12},
                           {"H100 NVL", 835e12, 417e12, 60e12},
                           {"H100", 989.4e12, 494.7e12, 66.9e12},
                           {"H200", 989.4e12, 494.7e12, 66.9e12},
                           {"A100", 312e12, 156e12, 19.5e12}};
  const std::string name = gpu::info(gpu::current()).name;
  for (const Row& row : kRows)
    if (name.find(row.name) != std::string::npos)
      return config.precision.compute == "bfloat16" ? row.bf16 : config.precision.tf32 ? row.tf32 : row.f32;
  return 0;
}

}  // namespace dstrain
