// Writing with a key-value cache is the full forward, one position at a time.

#include <algorithm>
#include <numeric>

#include "lib/core/transfer.h"
#include "lib/layers/host_batch.h"
#include "lib/train/inference.h"
#include "tests/support/catch.h"
#include "tests/support/devices.h"
#include "tests/train/tiny_job.h"

using namespace dstrain;
using namespace dstrain::test;

namespace {

// The most likely token after `ids`, by a forward over all of them without a cache.
std::int32_t most_likely(Engine& engine, const std::vector<std::int32_t>& prefix) {
  const auto n = static_cast<Index>(prefix.size());
  HostBatch host(1, n);
  host.tokens = prefix;
  const Batch batch = host.view();
  Stage& stage = engine.stage();
  Stream& stream = engine.stream();
  const Index columns = stage.model().head->weight().shape[0];
  const Buffer memory("test", stream.device(), static_cast<std::size_t>(columns) * sizeof(float) + sizeof(double));
  const Tensor loss(memory.data(), DType::f64, stream.device(), {1});
  const Tensor last(memory.data() + sizeof(double), DType::f32, stream.device(), {1, columns});
  stage.forward(stream, 0, batch, {.mode = Mode::eval, .loss = loss});
  stage.logits(stream, stage.output().slice(0, n - 1, n), last);
  stream.synchronize();
  stage.release(0);
  std::vector<float> logits(static_cast<std::size_t>(columns));
  download_now(logits.data(), last);
  return static_cast<std::int32_t>(std::max_element(logits.begin(), logits.begin() + kVocabulary) - logits.begin());
}

}  // namespace

TEST_CASE("greedy tokens from the cache are those of full forwards", "[generate]") {
  for (const std::string& device : test_devices())
    for (const TinyModel& model : tiny_models()) {
      INFO(model.name << " on " << device);
      const Config config = tiny_job(model.yaml, 1, 1, 1, 1, {"training.global_batch_size=1", "run.device=" + device});
      const auto world = World::dry(0, 1);  // one rank needs no peers
      const Mesh mesh{MeshSizes{}};
      const auto owned = make_engine(config, *world, mesh, run_device(config), 1);
      Engine& engine = *owned;
      engine.initialize(config.run.seed);
      std::vector<std::int32_t> ids{5, 300, 17}, written;
      Generator(config, engine).run(ids, {.tokens = 100, .temperature = 0}, -1, [&](std::int32_t token) {
        written.push_back(token);
        return true;
      });
      // The last token is chosen when every position is filled.
      REQUIRE(static_cast<Index>(written.size()) == kLength - 3 + 1);
      for (const std::int32_t token : written) {
        CHECK(token == most_likely(engine, ids));
        ids.push_back(token);
        if (static_cast<Index>(ids.size()) > kLength) break;
      }
    }
}

TEST_CASE("logits that are not numbers end the writing with an error", "[generate]") {
  const Config config = tiny_job(tiny_models()[0].yaml, 1, 1, 1, 1, {"training.global_batch_size=1"});
  const auto world = World::dry(0, 1);
  const auto engine = make_engine(config, *world, Mesh{MeshSizes{}}, Device::cpu, 1);
  engine->initialize(config.run.seed);
  engine->stage().model().visit([&](Param& p) {
    if (!p.decay)
      engine->write(p, Role::weight, std::vector<float>(static_cast<std::size_t>(p.numel()), std::nanf("")));
  });
  const std::vector<std::int32_t> prompt{5, 300, 17};
  for (const double temperature : {0.0, 1.0}) try {
      Generator(config, *engine).run(prompt, {.tokens = 4, .temperature = temperature}, -1, [](std::int32_t) {
        return true;
      });
      FAIL("no error");
    } catch (const Error& e) {
      CHECK(e.code() == ExitCode::nonfinite);
    }
}
