// Whole runs that meet bad numbers.
#include <cmath>
#include <cstring>
#include <fstream>
#include <sstream>

#include "tests/support/catch.h"
#include "tests/support/devices.h"
#include "tests/train/tiny_run.h"

using namespace dstrain;
using namespace dstrain::test;

namespace {

constexpr Index kSteps = 12;

struct Fixture {
  TemporaryDirectory directory;
  Fixture() {
    write_tokens(directory / "train", 40 * kLength + 1, 1);
    write_tokens(directory / "eval", 9 * kLength + 5, 2);
  }
  std::string run_of(const std::string& name) const { return directory / name; }

  using Look = std::function<void(Engine&, Index step)>;
  // Trains; every rank has a fault of its own, made by `fault`. Throws what the run throws.
  void train(const std::string& name, int ranks, const std::vector<std::string>& more,
             const std::function<Look(int rank)>& fault = {}) const {
    std::vector<std::string> overrides{"eval.every=0", "lr_schedule.type=constant"};
    overrides.insert(overrides.end(), more.begin(), more.end());
    const Loaded loaded = parse_config(system_files(), "tiny.yaml",
                                       tiny_run_yaml(tiny_models()[1].yaml, directory / "", run_of(name)), overrides);
    run_threads(ranks, [&](World& world) {
      Trainer trainer(resolve(loaded, world.size()), world, system_files(), system_clock(), true);
      if (fault) trainer.before_step(fault(world.rank()));
      trainer.run();
    });
  }
  std::string error_of(const std::string& name, int ranks, const std::vector<std::string>& more,
                       const std::function<Look(int rank)>& fault, ExitCode code) const {
    try {
      train(name, ranks, more, fault);
    } catch (const Error& e) {
      CHECK(static_cast<int>(e.code()) == static_cast<int>(code));
      CHECK_THAT(text_of(name, "exit.json"), Catch::Matchers::Contains(format("\"code\":{}", static_cast<int>(code))));
      return e.what();
    }
    FAIL("no error");
    return "";
  }
  std::string text_of(const std::string& name, const char* file) const {
    return read_file(system_files(), run_of(name) + "/" + file);
  }
  CheckpointState state_of(const std::string& name, Index step) const {
    return Checkpoint::open(system_files(), checkpoints_directory(run_of(name)) + "/" + step_name(step)).state();
  }
};

Param& param_of(Engine& engine, const std::string& name) {
  Param* found = nullptr;
  engine.stage().model().visit([&](Param& p) {
    for (const Piece& piece : p.pieces)
      if (piece.name == name && !found) found = &p;
  });
  check(found != nullptr, "no {}", name);
  return *found;
}

// Puts a value into a weight before a step, `times` times on rank `rank`.
std::function<Fixture::Look(int)> bad_weight(int rank, Index step, const std::string& name, int times = 1) {
  return [=](int self) -> Fixture::Look {
    return [=, left = self == rank ? times : 0](Engine& engine, Index at) mutable {
      if (at != step || left-- <= 0) return;
      Param& p = param_of(engine, name);
      std::vector<float> values = engine.read(p, Role::weight);
      values[values.size() / 2] = NAN;
      engine.write(p, Role::weight, values);
    };
  };
}

// Writes NaN into a gradient while a layer's backward runs.
class BadGradient final : public OpObserver {
 public:
  explicit BadGradient(float* place, int layer) : place_(place), layer_(layer) {}
  void before(Stream&, const char*, const Cost&) override {}
  void after(Stream& stream, const char*, std::span<const Tensor>) override {
    if (std::strcmp(stream.place().phase, "backward") == 0 && stream.place().layer == layer_) *place_ = NAN;
  }

 private:
  float* place_;
  int layer_;
};

std::vector<std::string> mesh(int data, int tensor, int pipeline, std::initializer_list<std::string> more) {
  std::vector<std::string> all{format("parallel.data={}", data), format("parallel.tensor={}", tensor),
                               format("parallel.pipeline={}", pipeline)};
  all.insert(all.end(), more);
  return all;
}

}  // namespace

TEST_CASE("skip: one update is left out, and the message names tensor, rank and samples", "[guard-run]") {
  const Fixture f;
  const auto fault = [](int rank) -> Fixture::Look {
    return [rank, injector = std::shared_ptr<BadGradient>()](Engine& engine, Index step) mutable {
      if (rank != 3) return;
      engine.stream().set_observer(nullptr);
      if (step != 5) return;
      // Layer 6 is on the second stage of both data ranks.
      Param& p = param_of(engine, "model.layers.6.mlp.down_proj.weight");
      injector = std::make_shared<BadGradient>(p.gradient.as<float>() + 7, 6);
      engine.stream().set_observer(injector.get());
    };
  };
  f.train("skip", 4, mesh(2, 1, 2, {"guard.on_nonfinite=skip"}), fault);
  const CheckpointState state = f.state_of("skip", kSteps);
  CHECK(state.optimizer_step == kSteps - 1);
  CHECK(state.next_sample == kSteps * kSamples);
  const std::string log = f.text_of("skip", "log.txt");
  INFO(log);
  CHECK_THAT(log, Catch::Matchers::Contains("step 5: loss") &&
                      Catch::Matchers::Contains("update skipped, 1 in a row") &&
                      Catch::Matchers::Contains("rank 3, backward, layer 6") &&
                      Catch::Matchers::Contains("train-00000.h5, document"));
  CHECK_THAT(f.text_of("skip", "metrics.jsonl"), Catch::Matchers::Contains("\"skipped\":1"));
}

TEST_CASE("rollback: back to the last checkpoint, the batch is passed over, a resume has the same bits",
          "[guard-run]") {
  const Fixture f;
  for (const std::string& device : test_devices()) {
    const auto options = mesh(
        2, 1, 2, {"guard.on_nonfinite=rollback", "checkpoint.every=3", "run.device=" + device, "checkpoint.keep=9"});
    const std::string whole = "whole-" + device, broken = "broken-" + device;
    const auto fault = bad_weight(2, 8, "model.layers.5.mlp.up_proj.weight");
    f.train(whole, 4, options, fault);
    const CheckpointState state = f.state_of(whole, kSteps);
    CHECK(state.optimizer_step == kSteps);
    CHECK(state.next_sample == (kSteps + 1) * kSamples);  // the batch of step 8 is passed over
    CHECK(state.guard.all_rollbacks == 1);
    CHECK(state.guard.passed == std::vector<std::pair<Index, Index>>{{7 * kSamples, 8 * kSamples}});
    const std::string log = f.text_of(whole, "log.txt");
    INFO(log);
    CHECK_THAT(log, Catch::Matchers::Contains("weight model.layers.5.mlp.up_proj.weight of rank 2 holds nan") &&
                        Catch::Matchers::Contains("rolled back to step 6, rollback 1 of 2"));
    std::istringstream lines(f.text_of(whole, "metrics.jsonl"));
    Index last = 0;
    for (std::string line; std::getline(lines, line);) {
      if (line.find("\"checkpoint_step\"") != line.npos) continue;
      CHECK_THAT(line, Catch::Matchers::StartsWith(format("{{\"step\":{},", ++last)));
      const Index first = (last - 1 + (last >= 8 ? 1 : 0)) * kSamples;
      CHECK_THAT(line,
                 Catch::Matchers::Contains(format("\"first_sample\":{},\"samples\":{},", first, first + kSamples)));
    }
    CHECK(last == kSteps);
    for (const int part : {9, 12}) {
      auto shorter = options;
      shorter.push_back(format("training.steps={}", part));
      f.train(broken, 4, shorter, part == 9 ? fault : std::function<Fixture::Look(int)>());
    }
    CHECK(checkpoint_tensors(f.run_of(broken), kSteps) == checkpoint_tensors(f.run_of(whole), kSteps));
    CHECK(f.state_of(broken, kSteps) == state);
  }
}

TEST_CASE("rollback without a checkpoint starts anew; a fault that stays ends the run with code 12", "[guard-run]") {
  const Fixture f;
  for (const std::string& device : test_devices()) {
    const auto options = mesh(1, 2, 2, {"guard.on_nonfinite=rollback", "run.device=" + device});
    const std::string name = "model.layers.2.input_layernorm.weight";
    f.train("once-" + device, 4, options, bad_weight(1, 3, name));
    CHECK(f.state_of("once-" + device, kSteps).guard.all_rollbacks == 1);
    CHECK(f.state_of("once-" + device, kSteps).next_sample == (kSteps + 1) * kSamples);
    const std::string why = f.error_of("stays-" + device, 4, options, bad_weight(1, 3, name, 100), ExitCode::nonfinite);
    CHECK_THAT(why, Catch::Matchers::Contains("after 2 rollback(s), guard.max_rollbacks, the run ends") &&
                        Catch::Matchers::Contains("weight " + name + " of rank 1"));
    // Skips in a row end in the same way.
    auto skips = options;
    skips[3] = "guard.on_nonfinite=skip";
    const std::string skipped =
        f.error_of("skips-" + device, 4, skips, bad_weight(1, 3, name, 100), ExitCode::nonfinite);
    CHECK_THAT(skipped, Catch::Matchers::Contains("4 in a row, guard.max_skips is 3; after 2 rollback(s)"));
    const std::string abort = f.error_of("abort-" + device, 4, {mesh(1, 2, 2, {"run.device=" + device})},
                                         bad_weight(1, 3, name), ExitCode::nonfinite);
    CHECK_THAT(abort, Catch::Matchers::Contains("guard.on_nonfinite is abort"));
  }
}

TEST_CASE("a spike in a run is rolled back", "[guard-run]") {
  const Fixture f;
  const auto fault = [](int) -> Fixture::Look {
    return [done = false](Engine& engine, Index step) mutable {
      if (step != 90 || std::exchange(done, true)) return;
      Param& p = param_of(engine, "model.norm.weight");
      std::vector<float> values = engine.read(p, Role::weight);
      for (float& v : values) v *= 20;
      engine.write(p, Role::weight, values);
    };
  };
  f.train("spike", 2, mesh(2, 1, 1, {"guard.on_spike=rollback", "checkpoint.every=20", "training.steps=100"}), fault);
  const CheckpointState state = f.state_of("spike", 100);
  CHECK(state.guard.all_rollbacks == 1);
  CHECK(state.optimizer_step == 100);
  CHECK(state.next_sample == 101 * kSamples);
  CHECK_THAT(f.text_of("spike", "log.txt"), Catch::Matchers::Contains("step 90: loss") &&
                                                Catch::Matchers::Contains("a spike; back to the last checkpoint") &&
                                                Catch::Matchers::Contains("rolled back to step 80"));
}

TEST_CASE("a flipped bit on a data rank ends the run with code 13 and the rank's name", "[guard-run]") {
  const Fixture f;
  for (const std::string& device : test_devices()) {
    const auto fault = [](int rank) -> Fixture::Look {
      return [rank](Engine& engine, Index step) {
        if (rank != 1 || step != 5) return;
        Param& p = param_of(engine, "model.layers.3.self_attn.o_proj.weight");
        std::vector<float> values = engine.read(p, Role::weight);
        values[3] *= 1.01f;  // more than a rounding of the next update can hide
        engine.write(p, Role::weight, values);
      };
    };
    const std::string why =
        f.error_of("flip-" + device, 3, mesh(3, 1, 1, {"guard.replica_hash_every=2", "run.device=" + device}), fault,
                   ExitCode::device);
    CHECK_THAT(why,
               Catch::Matchers::Contains("step 6: silent corruption: rank 1: its weights or moments are not those of "
                                         "the 2 other data ranks"));
  }
}

TEST_CASE("checks change no bit of a run, and say what they took", "[guard-run]") {
  const Fixture f;
  for (const std::string& device : test_devices())
    for (const auto& [data, tensor, pipeline] : {std::array{2, 1, 2}, std::array{1, 2, 1}, std::array{2, 1, 1}}) {
      const std::string tag = format("{}-{}{}{}", device, data, tensor, pipeline);
      // One micro-batch a rank in the last case.
      const auto options = [&](const char* every) {
        auto o = mesh(data, tensor, pipeline,
                      {"run.device=" + device, std::string("guard.recompute_every=") + every,
                       std::string("guard.replica_hash_every=") + every});
        if (pipeline == 1) o.push_back("training.micro_batch_size=12");
        return o;
      };
      f.train("plain-" + tag, data * tensor * pipeline, options("0"));
      f.train("checked-" + tag, data * tensor * pipeline, options("1"));
      CHECK(checkpoint_tensors(f.run_of("plain-" + tag), kSteps) ==
            checkpoint_tensors(f.run_of("checked-" + tag), kSteps));
      CHECK_THAT(f.text_of("checked-" + tag, "log.txt"),
                 Catch::Matchers::Contains("guard: checks in 12 of this run's steps took"));
    }
}

TEST_CASE("a checkpoint with a number that is not finite is not published", "[guard-run]") {
  const Fixture f;
  const auto fault = [](int rank) -> Fixture::Look {
    return [rank](Engine& engine, Index step) {
      if (rank != 1 || step != 8) return;
      Param& p = param_of(engine, "model.layers.6.mlp.down_proj.weight");
      std::vector<float> values = engine.read(p, Role::exp_avg_sq);
      values[3] = NAN;
      engine.write(p, Role::exp_avg_sq, values);
    };
  };
  const std::string why = f.error_of("moment", 2, mesh(1, 1, 2, {"checkpoint.every=4"}), fault, ExitCode::nonfinite);
  CHECK_THAT(why,
             Catch::Matchers::Contains("step 9") && Catch::Matchers::Contains("down_proj.weight of rank 1 holds nan"));
  CHECK(list_steps(system_files(), checkpoints_directory(f.run_of("moment"))) == std::vector<Index>{4});
}
