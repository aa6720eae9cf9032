// dstrain bench step: tokens/s, the share of the matmul rate, and a table of where the time goes.

#include <algorithm>
#include <cstdio>

#include "apps/bench.h"
#include "kernels/cpu/blas.h"
#include "lib/core/clock.h"
#include "lib/observe/progress.h"
#include "lib/train/ceiling.h"
#include "lib/train/op_watch.h"

namespace dstrain {

namespace {

struct Measured {
  std::vector<double> seconds;  // of each step, as a run does them
  Ledger ledger;                // by op, of `timed` steps
  int timed = 0;
  double timed_seconds = 0;  // wall time of those
  double loss = 0;
};

// On the CPU ops are timed in the same steps, so that the rows add up: two clock readings an op are nothing beside it.
// On a GPU events around each op need passes that are not recorded: those steps come after the measured ones.
Measured measure(BenchJob& job, int repeats) {
  Measured m;
  const bool gpu = job.device == Device::cuda;
  job.step();  // pages touched, caches warm
  job.step();
  job.step();  // passes recorded
  if (gpu) m.seconds = job.steps(repeats);
  m.timed = gpu ? std::min(repeats, 3) : repeats;
  m.ledger.timed = true;
  const bool graphs = job.engine->graphs();
  DeviceTimer timer;
  Stream& stream = job.engine->stream();
  if (gpu) {
    job.engine->set_graphs(false);
    stream.set_observer(&timer);
  } else {
    job.engine->count_into(&m.ledger);
  }
  for (int i = 0; i < m.timed; ++i) {
    const double begin = system_clock().now();
    m.loss = job.step();
    m.timed_seconds += system_clock().now() - begin;
    if (!gpu) m.seconds.push_back(system_clock().now() - begin);
  }
  if (gpu) {
    stream.synchronize();
    stream.set_observer(nullptr);
    timer.collect(m.ledger);
    job.engine->set_graphs(graphs);
  }
  job.engine->count_into(nullptr);
  return m;
}

// Means of a step. "communication" is the time in transfers on the host, waiting for peers included; what no op and no
// transfer accounts for is "gaps and other": of the steps as a run does them on a GPU.
void print_table(const Measured& m, double step_seconds, double flops_ceiling, double copy_ceiling) {
  const auto steps = static_cast<double>(m.timed);
  const double wall = step_seconds * steps;
  double rest = wall - m.ledger.communication_seconds;
  for (const auto& [name, row] : m.ledger.ops) rest -= row.seconds;
  std::vector<std::pair<std::string, Ledger::Row>> rows(m.ledger.ops.begin(), m.ledger.ops.end());
  std::sort(rows.begin(), rows.end(), [](const auto& a, const auto& b) { return a.second.seconds > b.second.seconds; });
  std::printf("\n%-22s %8s %9s %7s %10s %8s %8s\n", "op", "launches", "ms", "share", "GFLOP/s", "GB/s", "ceiling");
  for (const auto& [name, row] : rows) {
    const double by_flops = row.cost.flops / row.seconds / flops_ceiling,
                 by_bytes = copy_ceiling > 0 ? row.cost.bytes / row.seconds / copy_ceiling : 0;
    std::printf("%-22s %8.0f %9.2f %6.1f%% %10.1f %8.1f %7.1f%%\n", name.c_str(),
                static_cast<double>(row.launches) / steps, 1e3 * row.seconds / steps, 100 * row.seconds / wall,
                row.cost.flops / row.seconds / 1e9, row.cost.bytes / row.seconds / 1e9,
                100 * std::max(by_flops, by_bytes));
  }
  double sent = 0;
  for (const auto& [group, bytes] : m.ledger.communication) sent += bytes;
  if (m.ledger.communication_seconds > 0)
    std::printf("%-22s %8s %9.2f %6.1f%% %10s %8.1f\n", "communication", "",
                1e3 * m.ledger.communication_seconds / steps, 100 * m.ledger.communication_seconds / wall, "",
                sent / m.ledger.communication_seconds / 1e9);
  std::printf("%-22s %8s %9.2f %6.1f%%\n", "gaps and other", "", 1e3 * rest / steps, 100 * rest / wall);
}

ExitCode bench_step(const JobOptions& options, int repeats) {
  BenchJob job(options);
  const bool gpu = job.device == Device::cuda;
  const DType dtype = job.engine->params().compute().dtype;
  const Index n = gpu ? 8192 : 1024;
  // A GPU's memory may be full of the job; the ceilings are then measured in smaller products.
  const Index fits = gpu && gpu::memory_use().free < (std::size_t{2} << 30) ? 2048 : n;
  const double before = measure_matmul_rate(job.engine->stream(), dtype, fits);
  const Measured m = measure(job, repeats);
  const double after = measure_matmul_rate(job.engine->stream(), dtype, fits);
  const double copy = gpu ? measure_device_copy_rate(job.engine->stream(), std::size_t{256} << 20) : 0;
  if (job.world->rank() != 0) return ExitCode::ok;

  const double median = quantile(m.seconds, 0.5), ceiling = std::max(before, after);
  const Cost cost = job.plan.step.total();
  std::printf("job        %s: %d rank(s) of %d thread(s), %s\n", options.job.c_str(), job.world->size(),
              job.engine->pool().threads(),
              gpu ? gpu::info(gpu::current()).name.c_str() : format("BLAS kernel {}", cpu::blas_info().kernel).c_str());
  if (gpu && job.engine->stream().kernel_state())
    std::printf("%s", job.engine->stream().kernel_state()->fast_paths().c_str());
  if (gpu) std::printf("passes     %s\n", job.engine->graphs() ? "recorded as CUDA graphs" : "launched op by op");
  std::printf("step       median %.1f ms, p95 %.1f ms of %d; %s tokens/s (%.0f); loss %.4f\n", 1e3 * median,
              1e3 * quantile(m.seconds, 0.95), repeats, human_count(job.tokens() / median).c_str(),
              job.tokens() / median, m.loss);
  std::printf("this rank  %.2f GFLOP a step (causal; full %.2f): %.1f GFLOP/s\n", cost.flops / 1e9,
              cost.flops_full / 1e9, cost.flops / median / 1e9);
  std::printf("ceiling    %s matmul %lld^3, same run: %.1f GFLOP/s (before %.1f, after %.1f)\n", name_of(dtype),
              static_cast<long long>(fits), ceiling / 1e9, before / 1e9, after / 1e9);
  std::printf("ratio      %.1f%% of the matmul rate (causal), %.1f%% (full)\n", 100 * cost.flops / median / ceiling,
              100 * cost.flops_full / median / ceiling);
  if (const double peak = peak_flops(job.config, job.device); peak > 0)
    std::printf("MFU        %.1f%% of the vendor's %.0f TFLOP/s (causal), %.1f%% (full)\n",
                100 * cost.flops / median / peak, peak / 1e12, 100 * cost.flops_full / median / peak);
  if (gpu) {
    std::size_t arenas = 0;
    for (const MemoryRow& row : job.engine->memory())
      if (!row.host) arenas += row.bytes;
    const gpu::MemoryUse use = gpu::memory_use();
    std::printf("memory     %s in use on the card, arenas %s; copy ceiling %.0f GB/s read and written\n",
                human_bytes(static_cast<double>(use.total - use.free)).c_str(),
                human_bytes(static_cast<double>(arenas)).c_str(), copy / 1e9);
  }
  print_table(m, gpu ? median : m.timed_seconds / m.timed, ceiling, copy);
  return ExitCode::ok;
}

}  // namespace

RunCommand add_bench_step(CLI::App& command) {
  struct Options {
    JobOptions job;
    int repeats = 10;
  };
  auto o = std::make_shared<Options>();
  o->job.declare(command);
  command.add_option("--repeats", o->repeats, "Timed steps")->check(CLI::Range(1, 1000))->capture_default_str();
  return [o] { return bench_step(o->job, o->repeats); };
}

}  // namespace dstrain
