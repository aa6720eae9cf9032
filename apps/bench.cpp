// dstrain bench: every figure with its ceiling and the ratio, both from the same run.

#include <algorithm>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "apps/commands.h"
#include "kernels/cpu/blas.h"
#include "lib/config/resolve.h"
#include "lib/observe/progress.h"
#include "lib/train/ceiling.h"
#include "lib/train/plan.h"

namespace dstrain {

namespace {

struct StepOptions {
  std::string job;
  std::vector<std::string> overrides;
  int repeats = 10;
};

// Micro-batches of random tokens, every position trained on.
class RandomData {
 public:
  explicit RandomData(const Config& config) {
    const StepShape plan = step_shape(config);
    const auto rows = static_cast<std::size_t>(plan.micro_batch_size * plan.length);
    const Philox generator = philox(1, "bench tokens");
    for (std::size_t i = 0; i < rows; ++i) {
      const auto r = generator(0, i);
      const auto vocabulary = static_cast<std::uint32_t>(config.model.vocab_size);
      tokens_.push_back(static_cast<std::int32_t>(r[0] % vocabulary));
      targets_.push_back(static_cast<std::int32_t>(r[1] % vocabulary));
      positions_.push_back(static_cast<std::int32_t>(static_cast<Index>(i) % plan.length));
      row_samples_.push_back(static_cast<Index>(i) / plan.length);
    }
    for (Index b = 0; b < plan.micro_batch_size; ++b) samples_.push_back(b);
    weights_.assign(rows, 1.0f);
    const auto tensor = [](auto& v, DType t) { return Tensor(v.data(), t, Device::cpu, {static_cast<Index>(v.size())}); };
    batches_.assign(static_cast<std::size_t>(plan.micro_batches), {.batch = plan.micro_batch_size,
                                                                   .length = plan.length,
                                                                   .tokens = tensor(tokens_, DType::i32),
                                                                   .targets = tensor(targets_, DType::i32),
                                                                   .positions = tensor(positions_, DType::i32),
                                                                   .sample_ids = tensor(samples_, DType::i64),
                                                                   .row_sample_ids = tensor(row_samples_, DType::i64),
                                                                   .loss_weights = tensor(weights_, DType::f32)});
  }
  std::span<const Batch> batches() const { return batches_; }

 private:
  std::vector<std::int32_t> tokens_, targets_, positions_;
  std::vector<std::int64_t> samples_, row_samples_;
  std::vector<float> weights_;
  std::vector<Batch> batches_;
};

ExitCode bench_step(const StepOptions& options) {
  const auto world = World::make();
  const Config config = resolve(load_config(system_files(), options.job, options.overrides), world->size());
  const Mesh mesh(mesh_sizes(config.parallel));
  const RankPlan plan = plan_rank(config, mesh, world->rank());
  const int threads = config.run.threads > 0 ? static_cast<int>(config.run.threads)
                                             : std::max(1, available_cores() / world->local_size());
  Engine engine(config, *world, mesh, Device::cpu, threads, plan.sizes);
  engine.initialize(config.run.seed);
  const RandomData data(config);
  const double tokens = static_cast<double>(config.training.global_batch_size * config.training.sequence_length);
  const double rate = measure_matmul_rate(engine.stream());

  std::vector<double> seconds;
  std::int64_t update = 0;
  double loss = 0;
  const auto step = [&] { loss = engine.train_step(data.batches(), tokens, 1e-3, ++update, false).loss; };
  step();
  step();
  for (int i = 0; i < options.repeats; ++i) {
    const double begin = system_clock().now();
    step();
    seconds.push_back(system_clock().now() - begin);
  }
  std::sort(seconds.begin(), seconds.end());
  const double median = seconds[seconds.size() / 2];
  const double p95 = seconds[std::min(seconds.size() - 1, seconds.size() * 95 / 100)];
  const double rate_after = measure_matmul_rate(engine.stream());

  Ledger ledger;
  ledger.timed = true;
  engine.count_into(&ledger);
  step();
  engine.count_into(nullptr);
  if (world->rank() != 0) return ExitCode::ok;

  const double flops = plan.step.total().flops, full = plan.step.total().flops_full, ceiling = std::max(rate, rate_after);
  std::printf("job %s: %d rank(s) of %d thread(s), BLAS kernel %s\n", options.job.c_str(), world->size(), threads,
              cpu::blas_info().kernel.c_str());
  std::printf("step       median %.1f ms, p95 %.1f ms of %d; %s tokens/s; loss %.4f\n", 1e3 * median, 1e3 * p95,
              options.repeats, human_count(tokens / median).c_str(), loss);
  std::printf("this rank  %.2f GFLOP a step (causal; full %.2f): %.1f GFLOP/s\n", flops / 1e9, full / 1e9,
              flops / median / 1e9);
  std::printf("ceiling    float32 matmul 1024^3, same threads, same run: %.1f GFLOP/s (before %.1f, after %.1f)\n",
              ceiling / 1e9, rate / 1e9, rate_after / 1e9);
  std::printf("ratio      %.1f%% of the matmul rate (causal), %.1f%% (full)\n", 100 * flops / median / ceiling,
              100 * full / median / ceiling);

  std::vector<std::pair<std::string, Ledger::Row>> rows(ledger.ops.begin(), ledger.ops.end());
  std::sort(rows.begin(), rows.end(), [](const auto& a, const auto& b) { return a.second.seconds > b.second.seconds; });
  double sum = 0;
  for (const auto& [name, row] : rows) sum += row.seconds;
  std::printf("\n%-22s %8s %9s %7s %10s %8s\n", "op", "launches", "ms", "share", "GFLOP/s", "GB/s");
  for (const auto& [name, row] : rows)
    std::printf("%-22s %8lld %9.2f %6.1f%% %10.1f %8.1f\n", name.c_str(), static_cast<long long>(row.launches),
                1e3 * row.seconds, 100 * row.seconds / sum, row.cost.flops / row.seconds / 1e9,
                row.cost.bytes / row.seconds / 1e9);
  return ExitCode::ok;
}

}  // namespace

RunCommand add_bench(CLI::App& command) {
  command.require_subcommand(1);
  auto options = std::make_shared<StepOptions>();
  CLI::App* step = command.add_subcommand("step", "A training step on random tokens, and where its time goes");
  step->add_option("job", options->job, "Job file")->required();
  step->add_option("overrides", options->overrides, "key=value ...");
  step->add_option("--repeats", options->repeats, "Timed steps")->check(CLI::Range(1, 1000))->capture_default_str();
  return [options] { return bench_step(*options); };
}

}  // namespace dstrain
