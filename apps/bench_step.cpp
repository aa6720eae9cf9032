// dstrain bench step: tokens/s, the share of the matmul rate, and a table of where the time goes.

#include <algorithm>
#include <cstdio>

#include "apps/bench.h"
#include "kernels/cpu/blas.h"
#include "lib/core/clock.h"
#include "lib/observe/progress.h"
#include "lib/train/ceiling.h"

namespace dstrain {

namespace {

struct Measured {
  std::vector<double> seconds;  // of each step
  Ledger ledger;                // of all of them
  double loss = 0;
};

Measured measure(BenchJob& job, int repeats) {
  Measured m;
  job.step();  // pages touched, caches warm
  job.step();
  // Timed by op in the same steps, so that the rows add up: two clock readings an op are nothing beside it.
  m.ledger.timed = true;
  job.engine->count_into(&m.ledger);
  for (int i = 0; i < repeats; ++i) {
    const double begin = system_clock().now();
    m.loss = job.step();
    m.seconds.push_back(system_clock().now() - begin);
  }
  job.engine->count_into(nullptr);
  return m;
}

// Means of a step. "communication" is the time in transfers, waiting for peers included; "other" is what no op and no
// transfer accounts for.
void print_table(const Measured& m) {
  const auto steps = static_cast<double>(m.seconds.size());
  double wall = 0;
  for (double s : m.seconds) wall += s;
  double rest = wall - m.ledger.communication_seconds;
  for (const auto& [name, row] : m.ledger.ops) rest -= row.seconds;
  std::vector<std::pair<std::string, Ledger::Row>> rows(m.ledger.ops.begin(), m.ledger.ops.end());
  std::sort(rows.begin(), rows.end(), [](const auto& a, const auto& b) { return a.second.seconds > b.second.seconds; });
  std::printf("\n%-22s %8s %9s %7s %10s %8s\n", "op", "launches", "ms", "share", "GFLOP/s", "GB/s");
  for (const auto& [name, row] : rows)
    std::printf("%-22s %8.0f %9.2f %6.1f%% %10.1f %8.1f\n", name.c_str(), static_cast<double>(row.launches) / steps,
                1e3 * row.seconds / steps, 100 * row.seconds / wall, row.cost.flops / row.seconds / 1e9,
                row.cost.bytes / row.seconds / 1e9);
  double sent = 0;
  for (const auto& [group, bytes] : m.ledger.communication) sent += bytes;
  std::printf("%-22s %8s %9.2f %6.1f%% %10s %8.1f\n", "communication", "", 1e3 * m.ledger.communication_seconds / steps,
              100 * m.ledger.communication_seconds / wall, "",
              sent > 0 ? sent / m.ledger.communication_seconds / 1e9 : 0);
  std::printf("%-22s %8s %9.2f %6.1f%%\n", "other", "", 1e3 * rest / steps, 100 * rest / wall);
}

ExitCode bench_step(const JobOptions& options, int repeats) {
  BenchJob job(options);
  const double before = measure_matmul_rate(job.engine->stream());
  const Measured m = measure(job, repeats);
  const double after = measure_matmul_rate(job.engine->stream());
  if (job.world->rank() != 0) return ExitCode::ok;

  const double median = quantile(m.seconds, 0.5), ceiling = std::max(before, after);
  const Cost cost = job.plan.step.total();
  std::printf("job        %s: %d rank(s) of %d thread(s), BLAS kernel %s\n", options.job.c_str(), job.world->size(),
              job.engine->pool().threads(), cpu::blas_info().kernel.c_str());
  std::printf("step       median %.1f ms, p95 %.1f ms of %d; %s tokens/s; loss %.4f\n", 1e3 * median,
              1e3 * quantile(m.seconds, 0.95), repeats, human_count(job.tokens() / median).c_str(), m.loss);
  std::printf("this rank  %.2f GFLOP a step (causal; full %.2f): %.1f GFLOP/s\n", cost.flops / 1e9,
              cost.flops_full / 1e9, cost.flops / median / 1e9);
  std::printf("ceiling    float32 matmul 1024^3, same threads, same run: %.1f GFLOP/s (before %.1f, after %.1f)\n",
              ceiling / 1e9, before / 1e9, after / 1e9);
  std::printf("ratio      %.1f%% of the matmul rate (causal), %.1f%% (full)\n", 100 * cost.flops / median / ceiling,
              100 * cost.flops_full / median / ceiling);
  print_table(m);
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
