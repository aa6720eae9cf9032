// The plan's numbers are the run's numbers, and those of closed forms.

#include <cmath>

#include "lib/train/snapshot.h"
#include "tests/support/catch.h"
#include "tests/support/devices.h"
#include "tests/train/tiny_job.h"

using namespace dstrain;
using namespace dstrain::test;

constexpr std::size_t kHeld = 5000;  // bytes of a snapshot that wait on a GPU

TEST_CASE("the plan's bytes are the bytes that a run allocates and uses", "[plan]") {
  struct Layout {
    int data, tensor, pipeline, expert = 1;
  };
  for (const TinyModel& model : tiny_models()) {
    std::vector<Layout> layouts{{1, 1, 1}, {2, 1, 2}, {1, model.heads % 4 ? 3 : 4, 2}};
    const bool experts = std::string(model.yaml).find("n_routed_experts: 6") != std::string::npos;
    if (experts) layouts.insert(layouts.end(), {{2, 1, 1, 2}, {3, 1, 2, 3}, {2, 2, 2, 2}});
    for (const auto& [data, tensor, pipeline, expert] : layouts) {
      for (const std::string& where : test_devices())
        for (const auto& [compute, gradients] :
             {std::pair{"float32", "float32"}, {"bfloat16", "float32"}, {"bfloat16", "bfloat16"}}) {
          const Index micro = gradients == std::string("bfloat16") ? kSamples / data : 4;
          const Config config =
              tiny_job(model.yaml, data, tensor, pipeline, micro,
                       {"run.device=" + where, format("precision.compute={}", compute),
                        format("precision.gradients={}", gradients), format("parallel.expert={}", expert),
                        format("checkpoint.device_buffer_bytes={}", kHeld)});
          struct Pair {
            std::string what;
            std::size_t planned, real;
          };
          std::vector<Pair> pairs;  // Catch2's assertions are for one thread: the ranks collect, the test checks
          std::mutex mutex;
          run_threads(data * tensor * pipeline, [&](World& world) {
            const Mesh mesh(mesh_sizes(config.parallel));
            const Device device = run_device(config);
            use_device(config, world, device);
            const RankPlan plan = plan_rank(config, mesh, world.rank(), device);
            Engine engine(config, world, mesh, device, device, 1, plan.sizes);
            engine.initialize(1);
            const TinyData batches(config, engine.coordinates().data, 0);
            engine.train_step(batches.batches(), batches.valid(), 1e-3, false);
            engine.evaluate(batches.batches());
            const Snapshot snapshot(engine.params(), engine.groups(), kHeld);
            const auto allocated = engine.memory();
            const EngineSizes used = engine.used();
            const std::lock_guard lock(mutex);
            const bool held = device == Device::cuda;
            pairs.push_back({"rows", plan.memory.size(), allocated.size() + (held ? 3 : 2)});
            if (held)
              pairs.push_back({"on the device", plan.memory[plan.memory.size() - 2].bytes, snapshot.device_bytes()});
            // How ranks talk is known to the run alone: ranks that share a GPU go through host memory.
            for (std::size_t i = 0; i < allocated.size(); ++i)
              if (device == Device::cpu || allocated[i].purpose != "communication")
                pairs.push_back({allocated[i].purpose, plan.memory[i].bytes, allocated[i].bytes});
            pairs.push_back({"snapshot", plan.memory.back().bytes, snapshot.bytes()});
            // What is planned is what is needed: the marks of the real step reach every limit.
            pairs.push_back({"slot in use", plan.sizes.stage.slot, used.stage.slot});
            pairs.push_back({"scratch in use", plan.sizes.stage.scratch, used.stage.scratch});
            pairs.push_back({"boundary in use", plan.sizes.stage.boundary, used.stage.boundary});
            // Libraries on a GPU may need less than the bound that is planned.
            if (device == Device::cpu) pairs.push_back({"workspace in use", plan.sizes.workspace, used.workspace});
          });
          for (const Pair& p : pairs) {
            INFO(model.name << ", expert " << expert << ": " << p.what);
            // What experts on other ranks ask for depends on the router: it never passes the plan.
            if (expert > 1 && p.what.find("in use") != std::string::npos)
              CHECK(p.real <= p.planned);
            else
              CHECK(p.planned == p.real);
          }
        }
    }
  }
}

// Forward FLOPs a token of matrix work, causal attention at half; a step is three times that.
static double llama_flops(double d, double layers, double heads, double kv, double head, double f, double v, double s) {
  return 3 * (layers * (2 * d * head * (2 * heads + 2 * kv) + 2 * s * heads * head + 6 * d * f) + 2 * d * v);
}

TEST_CASE("a plan for a GPU counts what a save holds there, at most its state", "[plan]") {
  const auto row = [](const RankPlan& plan, const std::string& purpose) {
    std::size_t bytes = 0;
    for (const MemoryRow& r : plan.memory) bytes += r.purpose == purpose ? r.bytes : 0;
    return bytes;
  };
  for (const TinyModel& model : tiny_models()) {
    const auto planned = [&](std::size_t held) {
      const Config config = tiny_job(model.yaml, 1, 1, 1, 4, {format("checkpoint.device_buffer_bytes={}", held)});
      return plan_rank(config, Mesh(mesh_sizes(config.parallel)), 0, Device::cuda);
    };
    INFO(model.name);
    const RankPlan none = planned(0), some = planned(kHeld), all = planned(1'000'000'000);
    const std::size_t state = row(none, "snapshot");
    CHECK(row(none, "snapshot on the device") == 0);
    CHECK(none.memory.size() + 1 == some.memory.size());
    CHECK(row(some, "snapshot on the device") <= kHeld);
    CHECK(row(some, "snapshot on the device") > kHeld - 64 * sizeof(float));  // whole lines
    CHECK(row(all, "snapshot on the device") == state);
    CHECK(row(some, "snapshot") == state);
  }
}

TEST_CASE("spread experts change neither FLOPs nor parameters of a plan", "[plan]") {
  const TinyModel& model = tiny_models()[4];
  const auto plan = [&](int data, int expert, int tensor) {
    return make_plan(tiny_job(model.yaml, data, tensor, 1, 2, {format("parallel.expert={}", expert)}), Device::cpu);
  };
  for (const int tensor : {1, 2}) {
    const Plan whole = plan(6, 1, tensor);
    for (const int expert : {2, 3, 6}) {
      const Plan spread = plan(6, expert, tensor);
      CHECK(spread.flops_per_token == whole.flops_per_token);
      CHECK(spread.parameters == whole.parameters);
    }
  }
}

TEST_CASE("the ledger's FLOPs are the closed form's", "[plan]") {
  const auto flops = [](const std::string& model, Index sequence, const std::vector<std::string>& more) {
    std::vector<std::string> overrides{format("training.sequence_length={}", sequence), "training.global_batch_size=1",
                                       "training.micro_batch_size=1"};
    overrides.insert(overrides.end(), more.begin(), more.end());
    return make_plan(tiny_job(model, 1, 1, 1, 1, overrides), Device::cpu);
  };
  // dense-1b: 9.0 GF a token in training, counted causal.
  const Plan dense = flops(
      "{ type: llama, vocab_size: 32768, hidden_size: 2048, num_hidden_layers: 24, "
      "num_attention_heads: 16, intermediate_size: 5632, max_position_embeddings: 4096 }",
      4096, {});
  CHECK(dense.flops_per_token == llama_flops(2048, 24, 16, 16, 128, 5632, 32768, 4096));
  CHECK(std::fabs(dense.flops_per_token / 9.0e9 - 1) < 0.01);
  // Twice the attention, the rest the same.
  CHECK(dense.flops_per_token_full - dense.flops_per_token == 3 * 24 * 2.0 * 4096 * 16 * 128);
  CHECK(dense.parameters == 2 * 32768 * 2048ll + 24 * (4 * 2048 * 2048ll + 3 * 2048 * 5632ll + 2 * 2048) + 2048);
  // Qwen2.5-1.5B's shape at 1024: 9.52 GF.
  const Plan qwen = flops(
      "{ type: llama, vocab_size: 151936, hidden_size: 1536, num_hidden_layers: 28, "
      "num_attention_heads: 12, num_key_value_heads: 2, intermediate_size: 8960, "
      "tie_word_embeddings: true, max_position_embeddings: 4096 }",
      1024, {});
  CHECK(std::fabs(qwen.flops_per_token / 9.52e9 - 1) < 0.01);
}

TEST_CASE("DeepSeek-V3's FLOPs a token at 4096, counted causal", "[plan]") {
  const std::string path = std::string(DSTRAIN_SOURCE_DIR) + "/configs/deepseek_v3_671b.yaml";
  const Config config = resolve(
      load_config(system_files(), path, {"training.global_batch_size=1", "parallel.data=1", "parallel.expert=1"}), 16);
  const Plan plan = make_plan(config, Device::cuda);
  CHECK(std::fabs(plan.flops_per_token / 250.4e9 - 1) < 0.0005);
  CHECK(plan.parameters == 671'026'404'352);
  // Forward alone, over the stages.
  static std::byte nothing;
  const auto tensor = [](Index n, DType t) { return Tensor(&nothing, t, Device::dry, {n}); };
  const Batch batch{.batch = 1,
                    .length = 4096,
                    .tokens = tensor(4096, DType::i32),
                    .targets = tensor(4096, DType::i32),
                    .positions = tensor(4096, DType::i32),
                    .sample_ids = tensor(1, DType::i64),
                    .row_sample_ids = tensor(4096, DType::i64),
                    .loss_weights = tensor(4096, DType::f32)};
  double forward = 0;
  for (int stage = 0; stage < 16; ++stage) {
    const auto world = World::dry(stage, 16);
    Engine engine(config, *world, plan.mesh, Device::dry, Device::cuda, 1, {}, EngineUse::evaluation);
    Ledger ledger;
    engine.count_into(&ledger);
    engine.evaluate({&batch, 1});
    engine.count_into(nullptr);
    forward += ledger.total().flops;
  }
  CHECK(std::fabs(forward / 4096 / 83.5e9 - 1) < 0.0005);
}

TEST_CASE("tensor and pipeline ranks share the model's FLOPs and parameters", "[plan]") {
  const TinyModel& model = tiny_models()[2];
  const Plan one = make_plan(tiny_job(model.yaml, 1, 1, 1, 4), Device::cpu);
  const Plan many = make_plan(tiny_job(model.yaml, 1, 3, 4, 4), Device::cpu);
  CHECK(many.parameters == one.parameters);
  // The padded vocabulary differs: 384 columns on both.
  CHECK(std::fabs(many.flops_per_token / one.flops_per_token - 1) < 1e-12);
  CHECK(many.ranks.size() == 12);
  CHECK(std::fabs(many.bubble - 3.0 / (6 + 3)) < 1e-12);
}

TEST_CASE("eight stages train on eight thread ranks with 4 micro-batches and with 32 of size 4", "[plan]") {
  for (const auto& [file, bubble] : {std::pair{"gpipe_8x4.yaml", 7.0 / 11}, {"gpipe_8x32.yaml", 7.0 / 39}}) {
    const std::string path = std::string(DSTRAIN_SOURCE_DIR) + "/configs/" + file;
    const Config config = resolve(load_config(system_files(), path, {"model.vocab_size=331"}), 8);
    CHECK(std::fabs(make_plan(config, Device::cpu).bubble - bubble) < 1e-12);
    std::vector<double> losses;
    run_threads(8, [&](World& world) {
      const Mesh mesh(mesh_sizes(config.parallel));
      const auto owned = make_engine(config, world, mesh, Device::cpu, 1);
      Engine& engine = *owned;
      engine.initialize(1);
      const TinyData batches(config, 0, 0);
      for (int step = 1; step <= 2; ++step) {
        const StepResult r = engine.train_step(batches.batches(), batches.valid(), 1e-3, false);
        if (world.rank() == 0) losses.push_back(r.loss);
      }
    });
    CHECK(std::isfinite(losses.at(0)));
    CHECK(losses.at(1) < losses.at(0));
  }
}
