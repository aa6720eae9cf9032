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

struct Layout {
  int data = 1, tensor = 1, pipeline = 1;
  Index micro = 8;
};

TinyResult run_with(const TinyModel& model, const std::string& device, const std::vector<std::string>& keys,
                    const Layout& l = {}, int steps = kSteps) {
  std::vector<std::string> all{"run.device=" + device};
  all.insert(all.end(), keys.begin(), keys.end());
  return run_tiny_threads(tiny_job(model.yaml, l.data, l.tensor, l.pipeline, l.micro, all), steps);
}

}  // namespace

TEST_CASE("bfloat16 compute follows float32 within its rounding", "[precision]") {
  for (const std::string& device : test_devices())
    for (const TinyModel& model : tiny_models()) {
      const TinyResult exact = run_with(model, "cpu", model.undecided);
      struct Case {
        const char *master, *gradients;
        Layout layout;
      };
      for (const Case& c : {Case{"float32", "float32"},
                            {"split", "float32"},
                            {"split", "bfloat16", {.micro = kSamples}},
                            {"float32", "bfloat16", {.data = 2, .micro = kSamples / 2}}}) {
        INFO(model.name << " on " << device << ", master " << c.master << ", gradients " << c.gradients);
        std::vector<std::string> overrides = model.undecided;
        overrides.insert(overrides.end(), {"precision.compute=bfloat16", format("precision.master={}", c.master),
                                           format("precision.gradients={}", c.gradients)});
        const TinyResult ours = run_with(model, device, overrides, c.layout);
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

TEST_CASE("bfloat16 gradients are those of float32, rounded once where one product makes them", "[precision]") {
  for (const std::string& device : test_devices())
    for (const TinyModel& model : tiny_models())
      for (const Layout& l : {Layout{.micro = kSamples},
                              {.tensor = 2, .micro = kSamples},
                              {.tensor = 4, .micro = kSamples},
                              {.pipeline = 3, .micro = kSamples}}) {
        if (!fits(model, l.tensor, l.pipeline)) continue;
        INFO(model.name << " on " << device << ", tensor " << l.tensor << ", pipeline " << l.pipeline);
        std::vector<std::string> keys{"precision.compute=bfloat16"};
        const TinyResult exact = run_with(model, device, keys, l, 1);
        keys.emplace_back("precision.gradients=bfloat16");
        const TinyResult ours = run_with(model, device, keys, l, 1);
        CHECK(ours.losses == exact.losses);
        Index rounded = 0, others = 0, wrong = 0;
        double difference = 0, size = 0;
        for (const auto& [name, gradient] : exact.gradients) {
          const std::vector<float>& values = ours.gradients.at(name).values;
          // Key-value heads that two ranks hold are two products, whose sum is rounded again.
          const bool summed = l.tensor > model.kv_heads;
          for (std::size_t i = 0; i < values.size(); ++i) {
            const float g = gradient.values[i];
            const bool same = values[i] == g;
            same ? ++others : ++rounded;
            wrong += device == "cpu" && !summed && !same && values[i] != static_cast<float>(bfloat16(g));
            difference += (static_cast<double>(values[i]) - g) * (static_cast<double>(values[i]) - g);
            size += static_cast<double>(g) * g;
          }
        }
        CHECK(wrong == 0);
        // A GPU's products of another format may add up in another order.
        CHECK(std::sqrt(difference) <= 0x1p-8 * std::sqrt(size));
        CHECK(rounded > others);  // most parameters are such
      }
}

TEST_CASE("a split master is the float32 master: the same weights to a bit after one update", "[precision]") {
  // The first gradients differ where a weight lies half-way between two bfloat16: no normal variate of 32 bits does
  // here.
  for (const std::string& device : test_devices()) {
    const TinyModel& model = tiny_models()[1];
    for (const char* gradients : {"float32", "bfloat16"}) {
      const auto once = [&](const char* master) {
        return run_with(model, device,
                        {"precision.compute=bfloat16", format("precision.master={}", master),
                         format("precision.gradients={}", gradients)},
                        {.micro = kSamples}, 1);
      };
      const TinyResult whole = once("float32"), split = once("split");
      CHECK(whole.losses == split.losses);
      for (const auto& [name, weights] : whole.weights) {
        INFO(name << " on " << device << ", gradients " << gradients);
        CHECK(weights.values == split.weights.at(name).values);
      }
    }
  }
}

// What lies between gradients is zero, whatever passes through their memory: norms count it.
TEST_CASE("state that is read and written between steps leaves their bits", "[precision]") {
  for (const std::string& device : test_devices())
    for (const TinyModel& model : tiny_models())
      for (const char* gradients : {"float32", "bfloat16"}) {
        INFO(model.name << " on " << device << ", gradients " << gradients);
        const Config config = tiny_job(model.yaml, 1, 1, 1, kSamples,
                                       {"run.device=" + device, "precision.compute=bfloat16", "precision.master=split",
                                        format("precision.gradients={}", gradients)});
        const auto norms = [&](bool disturbed) {
          std::vector<double> found;
          run_threads(1, [&](World& world) {
            const Mesh mesh(mesh_sizes(config.parallel));
            const Device place = run_device(config);
            use_device(config, world, place);
            const auto engine = make_engine(config, world, mesh, place, 1);
            engine->initialize(config.run.seed);
            for (int step = 0; step < 3; ++step) {
              if (disturbed)
                engine->stage().model().visit(
                    [&](Param& p) { engine->write(p, Role::weight, engine->read(p, Role::weight)); });
              const TinyData data(config, 0, step);
              found.push_back(engine->train_step(data.batches(), data.valid(), 1e-3, false).grad_norm);
            }
          });
          return found;
        };
        CHECK(norms(true) == norms(false));
      }
}
