// Every mesh trains the same model as one rank does.

#include "tests/support/catch.h"
#include "tests/train/tiny_job.h"

using namespace dstrain;
using namespace dstrain::test;

namespace {

constexpr int kSteps = 20;

void check_equal(const TinyModel& model, const TinyResult& ours, const TinyResult& reference,
                 const std::vector<double>& spread) {
  REQUIRE(ours.gradients.size() == reference.gradients.size());
  const double tolerance = gradient_tolerance(model.layers, kSamples * kLength);
  for (const auto& [name, gradient] : reference.gradients) {
    INFO(name);
    CHECK(relative_error(ours.gradients.at(name), gradient) <= tolerance);
  }
  REQUIRE(ours.losses.size() == reference.losses.size());
  for (std::size_t i = 0; i < ours.losses.size(); ++i) {
    INFO("step " << i << ": " << ours.losses[i] << " and " << reference.losses[i] << ", spread " << spread[i]);
    CHECK(std::fabs(ours.losses[i] - reference.losses[i]) <= 10 * spread[i]);
  }
}

}  // namespace

TEST_CASE("every mesh of 1 to 8 ranks gives the gradients and losses of one rank", "[mesh]") {
  for (const TinyModel& model : tiny_models()) {
    const Config one = tiny_job(model.yaml, 1, 1, 1, 8);
    const TinyResult reference = run_tiny_threads(one, kSteps);
    const std::vector<double> spread = loss_spread(one, reference, kSteps);
    CHECK(reference.losses.back() < reference.losses.front());
    int meshes = 0;
    for (const int ranks : {1, 2, 3, 4, 6, 8})
      for (int tensor = 1; tensor <= ranks; ++tensor)
        for (int pipeline = 1; tensor * pipeline <= ranks; ++pipeline) {
          if (ranks % (tensor * pipeline) != 0 || !fits(model, tensor, pipeline)) continue;
          const int data = ranks / (tensor * pipeline);
          INFO(model.name << ": data " << data << ", tensor " << tensor << ", pipeline " << pipeline);
          const Index micro = kSamples / data / (pipeline > 1 ? 3 : 1);
          check_equal(model, run_tiny_threads(tiny_job(model.yaml, data, tensor, pipeline, std::max<Index>(1, micro)), kSteps),
                      reference, spread);
          ++meshes;
        }
    CHECK(meshes >= 16);
  }
}

TEST_CASE("the same job twice and with other thread counts gives the same bits", "[mesh]") {
  const Config config = tiny_job(tiny_models()[1].yaml, 2, 2, 2, 4);
  const TinyResult first = run_tiny_threads(config, 5), second = run_tiny_threads(config, 5);
  CHECK(first.losses == second.losses);
  for (const auto& [name, weights] : first.weights) CHECK(weights.values == second.weights.at(name).values);
}
