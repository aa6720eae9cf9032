// Writing with a key-value cache is the full forward, one position at a time, whatever else is in the batch and however
// many ranks share the model.

#include <algorithm>
#include <atomic>
#include <memory>
#include <mutex>

#include "lib/core/transfer.h"
#include "lib/layers/host_batch.h"
#include "lib/train/generator.h"
#include "lib/train/inference.h"
#include "tests/support/catch.h"
#include "tests/support/devices.h"
#include "tests/train/tiny_job.h"

using namespace dstrain;
using namespace dstrain::test;

namespace {

using Ids = std::vector<std::int32_t>;

// The most likely token after `prefix`, by a forward over all of it without a cache.
std::int32_t most_likely(Engine& engine, const Ids& prefix) {
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

// What is written after each prompt on this rank's mesh; empty on ranks that do not choose. `change` alters weights;
// `longest`: the longest prompt of any rank.
std::vector<Ids> write(World& world, Config config, const std::vector<Ids>& prompts, Index tokens,
                       const SamplingOptions& options, const std::function<void(Engine&)>& change = {},
                       Index longest = 0) {
  for (const Ids& prompt : prompts) longest = std::max(longest, static_cast<Index>(prompt.size()));
  config.training.sequence_length = longest;
  const Index length = longest + tokens;
  const Mesh mesh(mesh_sizes(config.parallel));
  const Device device = run_device(config);
  use_device(config, world, device);
  const RankPlan plan = plan_rank(config, mesh, world.rank(), device, EngineUse::generation, length);
  const auto engine = make_engine(config, world, mesh, device, 1, plan, EngineUse::generation);
  engine->initialize(config.run.seed);
  if (change) change(*engine);
  const Groups groups = make_groups(world, mesh, Poster::checkpoint);
  Generator generator(*engine, *groups.model, *groups.expert, length);
  std::vector<Ids> written(prompts.size());
  generator.run(prompts, tokens, options, [&](std::size_t i, std::int32_t id) {
    written[i].push_back(id);
    return true;
  });
  // No gradient, no moment, no second copy of the weights; and what was planned was enough and no more.
  for (const MemoryRow& row : engine->memory())
    CHECK((row.purpose != "gradients" && row.purpose != "optimizer" && row.purpose != "master"));
  CHECK(engine->used().stage.scratch <= plan.sizes.stage.scratch);
  return generator.chooses() ? written : std::vector<Ids>{};
}

Config writing_job(const TinyModel& model, int tensor, int pipeline, Index prompts, const std::string& device) {
  return tiny_job(model.yaml, 1, tensor, pipeline, prompts,
                  {format("training.global_batch_size={}", prompts), "run.device=" + device});
}

const std::vector<Ids> kPrompts{{5, 300, 17}, {1}, {7, 7, 7, 250, 9, 30, 2}, {42, 330}};

}  // namespace

TEST_CASE("greedy tokens from the cache are those of full forwards, on every mesh", "[generate]") {
  for (const std::string& device : test_devices())
    for (const TinyModel& model : tiny_models()) {
      const Index tokens = 8;
      const Config full =
          tiny_job(model.yaml, 1, 1, 1, 1,
                   {"training.global_batch_size=1", "run.device=" + device, "training.sequence_length=15"});
      const auto alone = World::dry(0, 1);  // one rank needs no peers
      const auto engine = make_engine(full, *alone, Mesh{MeshSizes{}}, run_device(full), 1);
      engine->initialize(full.run.seed);
      std::vector<Ids> expected;
      for (const Ids& prompt : kPrompts) {
        Ids ids = prompt;
        for (Index i = 0; i < tokens; ++i) ids.push_back(most_likely(*engine, ids));
        expected.emplace_back(ids.begin() + static_cast<std::ptrdiff_t>(prompt.size()), ids.end());
      }
      for (const auto& [tensor, pipeline] : {std::pair{1, 1}, {2, 1}, {3, 1}, {1, 2}, {1, 3}, {2, 2}, {3, 2}}) {
        if (!fits(model, tensor, pipeline)) continue;
        INFO(model.name << " on " << device << ", tensor " << tensor << ", pipeline " << pipeline);
        const Config config = writing_job(model, tensor, pipeline, 4, device);
        std::mutex mutex;
        std::vector<Ids> written;
        run_threads(tensor * pipeline, [&](World& world) {
          const std::vector<Ids> mine = write(world, config, kPrompts, tokens, {.temperature = 0});
          const std::lock_guard lock(mutex);
          if (!mine.empty()) written = mine;
        });
        CHECK(written == expected);
      }
    }
}

TEST_CASE("data ranks that share experts write their own prompts, each to its end", "[generate]") {
  const TinyModel& model = tiny_models()[4];  // 17 positions: prompts end at different times
  for (const std::string& device : test_devices()) {
    const auto alone = World::dry(0, 1);
    const std::vector<Ids> expected =
        write(*alone, writing_job(model, 1, 1, 4, device), kPrompts, 100, {.temperature = 0});
    for (const char* factor : {"1", "2"}) {
      const Config config = tiny_job(model.yaml, 2, 1, 1, 3,
                                     {"training.global_batch_size=6", "parallel.expert=2", "run.device=" + device,
                                      format("moe.receive_factor={}", factor)});
      std::mutex mutex;
      std::vector<Ids> written(kPrompts.size());
      run_threads(2, [&](World& world) {
        const std::size_t first = world.rank() == 0 ? 0 : 1, end = world.rank() == 0 ? 1 : kPrompts.size();
        const std::vector<Ids> prompts(kPrompts.begin() + static_cast<std::ptrdiff_t>(first),
                                       kPrompts.begin() + static_cast<std::ptrdiff_t>(end));
        const std::vector<Ids> mine = write(world, config, prompts, 100, {.temperature = 0}, {}, 7);
        const std::lock_guard lock(mutex);
        std::copy(mine.begin(), mine.end(), written.begin() + static_cast<std::ptrdiff_t>(first));
      });
      CHECK(written == expected);
    }
  }
}

TEST_CASE("sampled tokens depend on seed and prompt, not on the batch", "[generate]") {
  const TinyModel& model = tiny_models()[1];
  const SamplingOptions options{.temperature = 1.5, .top_k = 50, .top_p = 0.9, .seed = 11};
  const auto world = World::dry(0, 1);
  const std::vector<Ids> together = write(*world, writing_job(model, 1, 1, 4, "cpu"), kPrompts, 12, options);
  for (std::size_t i = 0; i < kPrompts.size(); ++i) {
    const std::vector<Ids> alone = write(*world, writing_job(model, 1, 1, 1, "cpu"), {kPrompts[i]}, 12, options);
    CHECK(alone[0] == together[i]);
  }
  SamplingOptions other = options;
  other.seed = 12;
  CHECK(write(*world, writing_job(model, 1, 1, 4, "cpu"), kPrompts, 12, other) != together);
}

TEST_CASE("writing ends where positions do", "[generate]") {
  const TinyModel& model = tiny_models()[2];  // 17 positions
  const auto world = World::dry(0, 1);
  const std::vector<Ids> written = write(*world, writing_job(model, 1, 1, 4, "cpu"), kPrompts, 100, {.temperature = 0});
  // The last token is chosen when every position is taken.
  for (std::size_t i = 0; i < kPrompts.size(); ++i) CHECK(written[i].size() == 17 - kPrompts[i].size() + 1);
}

TEST_CASE("logits that are not numbers end the writing with an error on every rank", "[generate]") {
  const Config config = writing_job(tiny_models()[1], 2, 2, 4, "cpu");
  for (const double temperature : {0.0, 1.0}) {
    std::atomic<int> errors = 0;
    run_threads(4, [&](World& world) {
      try {
        write(world, config, kPrompts, 4, {.temperature = temperature}, [](Engine& engine) {
          engine.stage().model().visit([&](Param& p) {
            if (!p.decay)
              engine.write(p, Role::weight, std::vector<float>(static_cast<std::size_t>(p.numel()), std::nanf("")));
          });
        });
      } catch (const Error& e) {
        errors += e.code() == ExitCode::nonfinite;
      }
    });
    CHECK(errors == 4);
  }
}
