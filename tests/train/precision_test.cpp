// Number formats of whole steps. A bfloat16 rounding is 2^-9 of a value; the roundings of the ops on a token's way
// through the layers are independent and add up as their root: about twelve ops a layer.

#include <cmath>

#include "tests/support/catch.h"
#include "tests/support/devices.h"
#include "tests/train/tiny_job.h"

using namespace dstrain;
using namespace dstrain::test;

namespace {

constexpr int kSteps = 20;

TinyResult run_with(const TinyModel& model, const std::string& device, const std::vector<std::string>& keys) {
  std::vector<std::string> all{"run.device=" + device};
  all.insert(all.end(), keys.begin(), keys.end());
  return run_tiny_threads(tiny_job(model.yaml, 1, 1, 1, 8, all), kSteps);
}

}  // namespace

TEST_CASE("bfloat16 compute follows float32 within its rounding", "[precision]") {
  for (const std::string& device : test_devices())
    for (const TinyModel& model : tiny_models()) {
      const TinyResult exact = run_with(model, "cpu", model.undecided);
      for (const char* master : {"float32", "split"}) {
        INFO(model.name << " on " << device << ", master " << master);
        std::vector<std::string> overrides = model.undecided;
        overrides.insert(overrides.end(), {"precision.compute=bfloat16", format("precision.master={}", master)});
        const TinyResult ours = run_with(model, device, overrides);
        const double rounding = std::ldexp(1.0, -9) * std::sqrt(12.0 * static_cast<double>(model.layers));
        // A loss of random tokens moves with its logits, whose size is about one.
        CHECK(std::fabs(ours.losses[0] - exact.losses[0]) <= rounding * exact.losses[0]);
        CHECK(ours.losses.back() < ours.losses.front());
        double error = 0, size = 0;
        for (const auto& [name, gradient] : exact.gradients)
          for (std::size_t i = 0; i < gradient.values.size(); ++i) {
            const double g = gradient.values[i], d = ours.gradients.at(name).values[i] - g;
            error += d * d;
            size += g * g;
          }
        CHECK(std::sqrt(error) <= 2 * rounding * std::sqrt(size));  // forward's and backward's
      }
    }
}

TEST_CASE("a split master is the float32 master: the same weights to a bit after one update", "[precision]") {
  // The first gradients differ where a weight lies half-way between two bfloat16: no normal variate of 32 bits does
  // here.
  for (const std::string& device : test_devices()) {
    const TinyModel& model = tiny_models()[1];
    const auto once = [&](const char* master) {
      const Config config =
          tiny_job(model.yaml, 1, 1, 1, 8,
                   {"run.device=" + device, "precision.compute=bfloat16", format("precision.master={}", master)});
      return run_tiny_threads(config, 1);
    };
    const TinyResult whole = once("float32"), split = once("split");
    CHECK(whole.losses == split.losses);
    for (const auto& [name, weights] : whole.weights) {
      INFO(name << " on " << device);
      CHECK(weights.values == split.weights.at(name).values);
    }
  }
}
