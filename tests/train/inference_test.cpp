// An engine without training computes what a training engine does, with less memory.

#include <cmath>
#include <mutex>
#include <numeric>

#include "tests/support/catch.h"
#include "tests/support/devices.h"
#include "tests/train/tiny_job.h"

using namespace dstrain;
using namespace dstrain::test;

namespace {

struct Losses {
  double sum = 0;
  std::vector<double> samples;
  std::size_t parameter_bytes = 0;  // with all that is kept beside them
};

Losses losses(World& world, const Config& config, EngineUse use) {
  const Mesh mesh(mesh_sizes(config.parallel));
  const Device device = run_device(config);
  use_device(config, world, device);
  const RankPlan plan = plan_rank(config, mesh, world.rank(), device, use);
  const auto engine = make_engine(config, world, mesh, device, 1, plan, use);
  engine->initialize(config.run.seed);
  const TinyData data(config, engine->coordinates().data, 0);
  Losses found{.sum = engine->evaluate(data.batches()), .samples = engine->evaluate_samples(data.batches())};
  for (const MemoryRow& row : engine->memory())
    for (const char* purpose : {"weights", "master", "gradients", "optimizer"})
      if (row.purpose == purpose) found.parameter_bytes += row.bytes;
  return found;
}

}  // namespace

TEST_CASE("an engine for evaluation has a training engine's losses and its weights alone", "[inference]") {
  struct Format {
    std::vector<std::string> overrides;
    std::size_t training, evaluation;  // bytes a parameter
  };
  const Format formats[] = {{{}, 16, 4},
                            {{"precision.compute=bfloat16"}, 18, 2},
                            {{"precision.compute=bfloat16", "precision.master=split"}, 16, 2}};
  const TinyModel& model = tiny_models()[1];
  for (const std::string& device : test_devices())
    for (const Format& format : formats)
      for (const auto& [data, tensor, pipeline, micro] :
           {std::array{1, 1, 1, 3}, {1, 1, 1, 1}, {2, 1, 1, 3}, {1, 2, 2, 3}, {1, 2, 2, 1}, {2, 2, 2, 3}}) {
        INFO(device << ", data " << data << ", tensor " << tensor << ", pipeline " << pipeline << ", micro-batches of "
                    << micro << ", " << format.overrides.size() << " overrides");
        std::vector<std::string> overrides = format.overrides;
        overrides.push_back("run.device=" + device);
        const Config config = tiny_job(model.yaml, data, tensor, pipeline, micro, overrides);
        std::mutex mutex;
        run_threads(data * tensor * pipeline, [&](World& world) {
          const Losses training = losses(world, config, EngineUse::training);
          const Losses evaluation = losses(world, config, EngineUse::evaluation);
          const std::lock_guard lock(mutex);
          CHECK(evaluation.sum == training.sum);
          CHECK(evaluation.samples == training.samples);
          CHECK(training.parameter_bytes * format.evaluation == evaluation.parameter_bytes * format.training);
          REQUIRE(training.samples.size() == static_cast<std::size_t>(kSamples));
          // A sample's logits are another product than a batch's: cuBLASLt's and OpenBLAS's kernels may sum it in
          // another order before they round.
          const double rounding = config.precision.compute == "bfloat16" ? 0x1p-8 : gradient_tolerance(model.layers, 1);
          const double sum = std::accumulate(training.samples.begin(), training.samples.end(), 0.0);
          CHECK(std::fabs(sum - training.sum) <= (device == "cpu" && micro == 1 ? 1e-12 : rounding) * training.sum);
        });
      }
}

TEST_CASE("losses of samples come in the order of samples, however they are spread", "[inference]") {
  const TinyModel& model = tiny_models()[1];
  std::mutex mutex;
  std::vector<std::vector<double>> found;
  for (const auto& [data, micro] : {std::pair{1, 24}, {2, 3}, {4, 2}}) {
    const Config config = tiny_job(model.yaml, data, 1, 1, micro);
    run_threads(data, [&](World& world) {
      const Losses mine = losses(world, config, EngineUse::evaluation);
      const std::lock_guard lock(mutex);
      found.push_back(mine.samples);
    });
  }
  for (const std::vector<double>& samples : found)
    for (std::size_t i = 0; i < samples.size(); ++i)
      // A mean of 13 float32 losses, whose matmuls were cut otherwise.
      CHECK(std::fabs(samples[i] - found[0][i]) <= gradient_tolerance(8, 32) * std::fabs(found[0][i]));
}
