// dstrain bench: every figure with its ceiling and the ratio, both from the same run.

#include "apps/bench.h"

#include <algorithm>

#include "lib/config/resolve.h"
#include "lib/core/files.h"
#include "lib/core/rng.h"
#include "lib/train/trainer.h"

namespace dstrain {

void JobOptions::declare(CLI::App& command) {
  command.add_option("job", job, "Job file")->required();
  command.add_option("overrides", overrides, "key=value ...");
}

RandomData::RandomData(const Config& config) {
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

BenchJob::BenchJob(const JobOptions& options)
    : world(World::make()),
      config(resolve(load_config(system_files(), options.job, options.overrides), world->size())),
      mesh(mesh_sizes(config.parallel)),
      plan(plan_rank(config, mesh, world->rank())),
      engine(
          std::make_unique<Engine>(config, *world, mesh, run_device(config), pool_threads(config, *world), plan.sizes)),
      data_(config),
      tokens_(static_cast<double>(config.training.global_batch_size * config.training.sequence_length)) {
  engine->initialize(config.run.seed);
}

double BenchJob::step() { return engine->train_step(data_.batches(), tokens_, 1e-3, ++update_, false).loss; }

double quantile(std::vector<double> values, double q) {
  std::sort(values.begin(), values.end());
  return values[std::min(values.size() - 1, static_cast<std::size_t>(q * static_cast<double>(values.size())))];
}

RunCommand add_bench(CLI::App& command) {
  struct Row {
    const char* name;
    const char* help;
    RunCommand (*add)(CLI::App&);
  };
  constexpr Row kRows[] = {
      {"ops", "Every op, forward and backward, at the shapes of a job's step", add_bench_ops},
      {"step", "A training step on random tokens, and where its time goes", add_bench_step},
      {"checkpoint", "How long a save stops training, and how long it takes", add_bench_checkpoint},
      {"loader", "How long training waits for its data", add_bench_loader},
  };
  command.require_subcommand(1);
  std::vector<std::pair<const CLI::App*, RunCommand>> commands;
  for (const Row& row : kRows) {
    CLI::App* sub = command.add_subcommand(row.name, row.help);
    commands.emplace_back(sub, row.add(*sub));
  }
  return [commands] {
    for (const auto& [sub, run] : commands)
      if (sub->parsed()) return run();
    return ExitCode::usage;
  };
}

}  // namespace dstrain
