// dstrain bench: every figure with its ceiling and the ratio, both from the same run.

#include "apps/bench.h"

#include <algorithm>

#include "lib/config/resolve.h"
#include "lib/core/clock.h"
#include "lib/core/files.h"
#include "lib/core/rng.h"
#include "lib/train/trainer.h"

namespace dstrain {

void JobOptions::declare(CLI::App& command) {
  command.add_option("job", job, "Job file")->required();
  command.add_option("overrides", overrides, "key=value ...");
}

RandomData::RandomData(const Config& config, bool pinned) {
  const StepShape plan = step_shape(config);
  const Index rows = plan.micro_batch_size * plan.length;
  const Index depths = config.model.num_nextn_predict_layers;
  const std::size_t bytes =
      static_cast<std::size_t>(rows * (28 + 8 * depths)) + static_cast<std::size_t>(plan.micro_batch_size) * 8;
  memory_ = pinned ? Buffer::pinned("bench batches", bytes) : Buffer("bench batches", Device::cpu, bytes);
  std::byte* at = memory_.data();
  const auto take = [&](DType type, Index n) {
    Tensor tensor(at, type, Device::cpu, {n});
    at += tensor.bytes();
    return tensor;
  };
  Batch batch{.batch = plan.micro_batch_size, .length = plan.length};
  batch.row_sample_ids = take(DType::i64, rows);
  batch.sample_ids = take(DType::i64, plan.micro_batch_size);
  batch.tokens = take(DType::i32, rows);
  batch.targets = take(DType::i32, rows);
  batch.positions = take(DType::i32, rows);
  batch.loss_weights = take(DType::f32, rows);
  if (config.data.document_mask) batch.first_keys = take(DType::i32, rows);  // one document a sample
  if (depths > 0) {
    batch.mtp_targets = take(DType::i32, depths * rows).view({depths, rows});
    batch.mtp_weights = take(DType::f32, depths * rows).view({depths, rows});
  }
  const Philox generator = philox(1, "bench tokens");
  const auto vocabulary = static_cast<std::uint32_t>(config.model.vocab_size);
  for (Index i = 0; i < rows; ++i) {
    const auto r = generator(0, static_cast<std::uint64_t>(i));
    batch.tokens.as<std::int32_t>()[i] = static_cast<std::int32_t>(r[0] % vocabulary);
    batch.targets.as<std::int32_t>()[i] = static_cast<std::int32_t>(r[1] % vocabulary);
    batch.positions.as<std::int32_t>()[i] = static_cast<std::int32_t>(i % plan.length);
    batch.row_sample_ids.as<std::int64_t>()[i] = i / plan.length;
    batch.loss_weights.as<float>()[i] = 1.0f;
    if (batch.first_keys.defined()) batch.first_keys.as<std::int32_t>()[i] = 0;
  }
  for (Index b = 0; b < plan.micro_batch_size; ++b) batch.sample_ids.as<std::int64_t>()[b] = b;
  fill_mtp(batch);
  batches_.assign(static_cast<std::size_t>(plan.micro_batches), batch);
}

BenchJob::BenchJob(const JobOptions& options)
    : world(World::make()),
      config(resolve(load_config(system_files(), options.job, options.overrides), world->size())),
      mesh(mesh_sizes(config.parallel)),
      device(start_device(config, *world)),
      plan(plan_rank(config, mesh, world->rank(), device)),
      engine(make_engine(config, *world, mesh, device, pool_threads(config, *world), plan)),
      data_(config, device == Device::cuda),
      tokens_(static_cast<double>(config.training.global_batch_size * config.training.sequence_length),
              mtp_tokens(data_.batches())) {
  for (double& n : tokens_.mtp) n *= static_cast<double>(config.parallel.data);  // alike on every data rank
  engine->initialize(config.run.seed);
  engine->tune("");
}

Device BenchJob::start_device(const Config& config, World& world) {
  const Device device = run_device(config);
  use_device(config, world, device);
  return device;
}

double BenchJob::step() { return engine->train_step(data_.batches(), tokens_, 1e-3, false).loss; }

std::vector<double> BenchJob::steps(int count) {
  std::vector<double> seconds;
  double at = 0;
  std::size_t under_way = 0;
  const auto take = [&](std::size_t left) {
    for (; under_way > left; --under_way) {
      engine->take_result();
      const double now = system_clock().now();
      if (at > 0) seconds.push_back(now - at);
      at = now;
    }
  };
  for (int i = 0; i <= count; ++i) {
    engine->enqueue_step(data_.batches(), tokens_, 1e-3, false);
    ++under_way;
    take(engine->lag());
  }
  take(0);
  return seconds;
}

double quantile(std::vector<double> values, double q) {
  std::sort(values.begin(), values.end());
  return values[std::min(values.size() - 1, static_cast<std::size_t>(q * static_cast<double>(values.size())))];
}

RunCommand add_bench(CLI::App& command) {
  constexpr CommandRow kRows[] = {
      {"ops", "Every op, forward and backward, at the shapes of a job's step", add_bench_ops},
      {"step", "A training step on random tokens, and where its time goes", add_bench_step},
      {"checkpoint", "How long a save stops training, and how long it takes", add_bench_checkpoint},
      {"loader", "How long training waits for its data", add_bench_loader},
      {"tokenizer", "Megabytes and tokens a second and core", add_bench_tokenizer},
  };
  return add_commands(command, kRows);
}

}  // namespace dstrain
