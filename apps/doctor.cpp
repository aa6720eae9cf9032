// dstrain doctor: what this machine and build can do, and what is missing.

#include <cstdio>
#include <fstream>
#include <string>

#include "apps/commands.h"
#include "kernels/cpu/blas.h"
#include "lib/comm/world.h"
#include "lib/core/build.h"
#include "lib/core/gpu.h"
#include "lib/core/thread_pool.h"

namespace dstrain {

namespace {

std::string proc_value(const char* file, const std::string& key) {
  std::ifstream in(file);
  for (std::string line; std::getline(in, line);)
    if (line.rfind(key, 0) == 0) {
      const auto colon = line.find(':');
      const auto begin = line.find_first_not_of(" \t", colon + 1);
      return begin == std::string::npos ? "" : line.substr(begin);
    }
  return "unknown";
}

void row(const char* what, const std::string& value) { std::printf("%-18s %s\n", what, value.c_str()); }

ExitCode doctor() {
  const auto world = World::make();
  if (world->rank() != 0) return ExitCode::ok;
  row("dstrain", format("{} ({}, {})", build::version, build::compiler, build::type));
  row("processor", proc_value("/proc/cpuinfo", "model name"));
  row("cores", format("{} usable", available_cores()));
  row("memory", proc_value("/proc/meminfo", "MemAvailable") + " available");
  row("world", format("{} rank(s), {}", world->size(), world->kind()));
  const cpu::BlasInfo blas = cpu::blas_info();
  row("BLAS", format("{}, kernel {}", blas.name, blas.kernel));
  if (!blas.wanted.empty())
    row("  warning", format("slower than this processor allows; where your tests still pass with it, set: export "
                            "OPENBLAS_CORETYPE={}",
                            blas.wanted));
  row("CUDA", build::cuda ? "built in" : "not built in");
  if (build::cuda) {
    const int gpus = gpu::count();
    if (gpus == 0) row("GPUs", format("none to use: {}", gpu::why_none()));
    for (int i = 0; i < gpus; ++i) {
      const gpu::Info g = gpu::info(i);
      row(format("GPU {}", i).c_str(),
          format("{}, compute capability {}.{}, {} multiprocessors, {:.1f} GiB; driver for CUDA {}.{}, runtime {}.{}",
                 g.name, g.major, g.minor, g.multiprocessors, static_cast<double>(g.memory) / (1 << 30),
                 g.driver / 1000, g.driver % 1000 / 10, g.runtime / 1000, g.runtime % 1000 / 10));
      if (g.major < 8) row("  warning", "bfloat16 needs compute capability 8.0 or newer");
    }
    for (const std::string& line : gpu::library_versions()) row("library", line);
  }
  row("left out", *build::left_out ? build::left_out : "nothing");
  return ExitCode::ok;
}

}  // namespace

RunCommand add_doctor(CLI::App&) { return doctor; }

}  // namespace dstrain
