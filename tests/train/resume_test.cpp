// Runs that stop and go on are the runs that never stopped.

#include <cmath>
#include <csignal>
#include <fstream>

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
  std::string yaml(const TinyModel& model, const std::string& run) const {
    return tiny_run_yaml(model.yaml, directory / "", directory / run);
  }
};

std::vector<std::string> mesh(int data, int tensor, int pipeline) {
  return {format("parallel.data={}", data), format("parallel.tensor={}", tensor),
          format("parallel.pipeline={}", pipeline)};
}

std::vector<std::string> with(std::vector<std::string> a, std::initializer_list<std::string> b) {
  a.insert(a.end(), b);
  return a;
}

}  // namespace

TEST_CASE("k steps and the rest after a resume give the bits of an unbroken run", "[resume]") {
  const Fixture f;
  struct Layout {
    int model, data, tensor, pipeline;
    const char* device;
    bool bf16;
  };
  std::vector<Layout> layouts;
  for (const std::string& device : test_devices())
    for (const Layout& l :
         {Layout{0, 1, 1, 1, "", false}, Layout{1, 2, 2, 1, "", false}, Layout{2, 1, 3, 2, "", false},
          Layout{3, 2, 1, 2, "", false}, Layout{1, 1, 1, 2, "", true}, Layout{3, 1, 1, 1, "", true}}) {
      layouts.push_back(l);
      layouts.back().device = device == "cuda" ? "cuda" : "cpu";
    }
  for (const Layout& l : layouts) {
    const TinyModel& model = tiny_models()[static_cast<std::size_t>(l.model)];
    const int ranks = l.data * l.tensor * l.pipeline;
    auto layout = mesh(l.data, l.tensor, l.pipeline);
    layout.push_back(format("run.device={}", l.device));
    if (l.bf16)
      layout.insert(layout.end(),
                    {"precision.compute=bfloat16", "precision.master=split", "precision.gradients=bfloat16",
                     format("training.micro_batch_size={}", kSamples / l.data)});
    const std::string tag = format("{}-{}-{}", l.model, l.device, l.bf16 ? "bf16" : "f32");
    const std::string whole = "whole-" + tag;
    train_tiny(f.yaml(model, whole), ranks, layout);
    const auto expected = checkpoint_tensors(f.directory / whole, kSteps);
    const CheckpointState end =
        Checkpoint::open(system_files(), checkpoints_directory(f.directory / whole) + "/" + step_name(kSteps)).state();
    CHECK(end.optimizer_step == kSteps);
    CHECK(end.next_sample == kSteps * kSamples);
    const auto expected_numbers = numbers_of(f.directory / whole);
    REQUIRE(expected_numbers.size() == kSteps + 4);
    for (const int k : {1, 5, 11}) {
      INFO(model.name << ", " << ranks << " ranks on " << l.device << (l.bf16 ? ", bf16" : "") << ", k " << k);
      const std::string run = format("broken-{}-{}", tag, k);
      // The first part is a run of all steps that is stopped, so that the learning rates are the same: it saves after
      // k steps, then its later checkpoint and metrics are as if they had never been.
      train_tiny(f.yaml(model, run), ranks, with(layout, {format("checkpoint.every={}", k), "checkpoint.keep=100"}));
      for (const Index step : list_steps(system_files(), checkpoints_directory(f.directory / run)))
        if (step > k) remove_tree(system_files(), checkpoints_directory(f.directory / run) + "/" + step_name(step));
      train_tiny(f.yaml(model, run), ranks, layout);
      CHECK(checkpoint_tensors(f.directory / run, kSteps) == expected);
      CHECK(numbers_of(f.directory / run) == expected_numbers);
    }
  }
}

TEST_CASE("three resumes in a chain, over three epochs and more, give the bits of an unbroken run", "[resume]") {
  const Fixture f;
  const TinyModel& model = tiny_models()[0];
  const std::vector<std::string> constant{"lr_schedule.type=constant"};
  train_tiny(f.yaml(model, "whole"), 2, with(constant, {"parallel.pipeline=2"}));
  // 24 samples a step of 40 an epoch: three epochs end within step 5, and the stops are at 2, 5 and 9.
  for (const int steps : {2, 5, 9, 12})
    train_tiny(f.yaml(model, "chain"), 2, with(constant, {"parallel.pipeline=2", format("training.steps={}", steps)}));
  CHECK(checkpoint_tensors(f.directory / "chain", kSteps) == checkpoint_tensors(f.directory / "whole", kSteps));
}

TEST_CASE("a checkpoint goes on under every other layout with identical parameters and optimizer state", "[resume]") {
  const Fixture f;
  const TinyModel& model = tiny_models()[1];
  // From the last device that is tested, so that a GPU's checkpoint is read by CPU ranks too.
  train_tiny(f.yaml(model, "from"), 4, with(mesh(1, 2, 2), {"run.device=" + test_devices().back()}));
  const auto expected = checkpoint_tensors(f.directory / "from", kSteps);
  struct Layout {
    int data, tensor, pipeline;
  };
  std::vector<std::pair<Layout, std::string>> places;
  for (const std::string& device : test_devices())
    for (const Layout& l :
         {Layout{1, 1, 1}, Layout{2, 1, 1}, Layout{1, 4, 1}, Layout{1, 1, 3}, Layout{3, 2, 1}, Layout{2, 2, 2}})
      places.emplace_back(l, device);
  for (const auto& [l, device] : places) {
    INFO("data " << l.data << ", tensor " << l.tensor << ", pipeline " << l.pipeline << " on " << device);
    // Loads, finds no step left to do, and saves under the other layout after the old checkpoint is renamed away.
    const std::string run = f.directory / format("to-{}-{}-{}-{}", l.data, l.tensor, l.pipeline, device);
    std::filesystem::create_directories(checkpoints_directory(run));
    std::filesystem::copy(checkpoints_directory(f.directory / "from") + "/" + step_name(kSteps),
                          checkpoints_directory(run) + "/" + step_name(kSteps));
    const Config config = resolve(parse_config(system_files(), "tiny.yaml", f.yaml(model, "to"),
                                               with(mesh(l.data, l.tensor, l.pipeline), {"run.device=" + device})),
                                  l.data * l.tensor * l.pipeline);
    run_threads(l.data * l.tensor * l.pipeline, [&](World& world) {
      const Mesh mesh_of(mesh_sizes(config.parallel));
      use_device(config, world, run_device(config));
      const auto owned = make_engine(config, world, mesh_of, run_device(config), 1);
      Engine& engine = *owned;
      Checkpointer checkpointer(config, system_files(), system_clock(), checkpoints_directory(run), world, engine);
      engine.initialize(1);
      auto state = checkpointer.restore([](const std::string&) {});
      check(state.has_value(), "nothing to restore");
      state->step = kSteps + 1;
      checkpointer.save(*state);
      for (const auto& outcome : checkpointer.finish())
        if (outcome.error) std::rethrow_exception(outcome.error);
    });
    CHECK(checkpoint_tensors(run, kSteps + 1) == expected);
  }
}

TEST_CASE("another thread count gives the same bits", "[resume]") {
  const Fixture f;
  for (const int threads : {1, 2, 3})
    train_tiny(f.yaml(tiny_models()[0], format("threads-{}", threads)), 2,
               {"parallel.data=2", format("run.threads={}", threads)});
  const auto expected = checkpoint_tensors(f.directory / "threads-1", kSteps);
  for (const int threads : {2, 3})
    CHECK(checkpoint_tensors(f.directory / format("threads-{}", threads), kSteps) == expected);
}

TEST_CASE("a checkpoint of another model, seed or length is refused", "[resume]") {
  const Fixture f;
  const std::vector<std::string> short_run{"training.steps=3"};
  train_tiny(f.yaml(tiny_models()[0], "run"), 1, short_run);
  const auto code_of = [&](const char* override_text) {
    try {
      train_tiny(f.yaml(tiny_models()[0], "run"), 1, with(short_run, {override_text}));
    } catch (const Error& e) {
      return e.code();
    }
    return ExitCode::ok;
  };
  CHECK(code_of("model.num_hidden_layers=7") == ExitCode::checkpoint);
  CHECK(code_of("run.seed=8") == ExitCode::checkpoint);
  CHECK(code_of("training.sequence_length=12") == ExitCode::checkpoint);
}

TEST_CASE("a run does not go on with other tokens", "[resume]") {
  const Fixture f;
  const std::vector<std::string> short_run{"training.steps=3"};
  train_tiny(f.yaml(tiny_models()[0], "run"), 1, short_run);
  const auto before = checkpoint_tensors(f.directory / "run", 3);
  const auto message = [&](Index tokens, std::uint64_t seed) -> std::string {
    std::filesystem::remove(f.directory / "train-00000.h5");
    write_tokens(f.directory / "train", tokens, seed);
    try {
      train_tiny(f.yaml(tiny_models()[0], "run"), 1, {"training.steps=4"});
    } catch (const Error& e) {
      CHECK(e.code() == ExitCode::data);
      return e.what();
    }
    return "";
  };
  CHECK_THAT(message(40 * kLength + 1, 5), Catch::Matchers::Contains("are not those that the checkpoint of step 3"));
  CHECK_THAT(message(30 * kLength + 1, 1), Catch::Matchers::Contains("data.train"));  // cut short
  CHECK(checkpoint_tensors(f.directory / "run", 3) == before);
  CHECK(message(40 * kLength + 1, 1) == "");  // the same tokens again, in a file made anew
}

TEST_CASE("a run goes on with its mixture and its mask on other data ranks, and not with other weights", "[resume]") {
  const Fixture f;
  const TinyModel& model = tiny_models()[0];
  const std::string list = format("[{{path: '{}', weight: 3}}, {{path: '{}', weight: 1, epochs: 9}}]",
                                  f.directory / "train-*.h5", f.directory / "eval-*.h5");
  const std::vector<std::string> mixed{"data.train=" + list, "data.document_mask=true"};
  const std::vector<std::string> two = with(mixed, {"parallel.data=2", "lr_schedule.type=constant"});
  train_tiny(f.yaml(model, "whole"), 2, two);
  for (const int steps : {2, 5}) train_tiny(f.yaml(model, "chain"), 2, with(two, {format("training.steps={}", steps)}));
  for (const char* copy : {"one", "three"})
    std::filesystem::copy(f.directory / "chain", f.directory / copy, std::filesystem::copy_options::recursive);
  train_tiny(f.yaml(model, "chain"), 2, two);
  CHECK(checkpoint_tensors(f.directory / "chain", kSteps) == checkpoint_tensors(f.directory / "whole", kSteps));
  // The step after a resume on another data-parallel size is of the same samples: its loss differs by roundings alone.
  const auto loss_of = [&](const std::string& run, Index step) {
    for (const std::string& line : numbers_of(f.directory / run))
      if (line.starts_with(format("{{\"step\":{},", step)) && line.find("\"loss\":") != std::string::npos)
        return std::stod(line.substr(line.find("\"loss\":") + 7));
    return 0.0;
  };
  for (const auto& [run, ranks] : {std::pair{"one", 1}, std::pair{"three", 3}}) {
    train_tiny(f.yaml(model, run), ranks,
               with(mixed, {format("parallel.data={}", ranks), "lr_schedule.type=constant", "training.steps=6"}));
    CHECK(loss_of(run, 6) > 1);
    CHECK(std::fabs(loss_of(run, 6) - loss_of("whole", 6)) < 1e-6 * loss_of("whole", 6));
    CHECK(std::fabs(loss_of("whole", 7) - loss_of("whole", 6)) > 1e-4);
  }
  const auto message = [&](const std::vector<std::string>& overrides) -> std::string {
    try {
      train_tiny(f.yaml(model, "whole"), 1, overrides);
    } catch (const Error& e) {
      CHECK(e.code() == ExitCode::data);
      return e.what();
    }
    return "";
  };
  std::string other = list;
  other.replace(other.find("weight: 3"), 9, "weight: 4");
  CHECK_THAT(message({"data.train=" + other, "training.steps=13"}),
             Catch::Matchers::Contains("its tokens, weights or document mask"));
  // An evaluation counts too: by default it reads each entry of a mixture once.
  const std::string eval = list.substr(0, list.find(", epochs")) + "}]";
  CHECK_THAT(message({"data.train=" + list, "data.eval=" + eval, "eval.samples=48", "training.steps=13"}),
             Catch::Matchers::Contains("data.eval[1]"));
  CHECK_THAT(message({"data.train=" + list, "training.steps=13",
                      format("data.eval=[{{path: '{}', epochs: 0.5}}]", f.directory / "eval-*.h5")}),
             Catch::Matchers::Contains("10 samples of an evaluation read it 1.000 times, and its epochs are 0.500"));
  CHECK(message({"data.train=" + list, "data.eval=" + eval, "eval.samples=40", "training.steps=13",
                 "data.document_mask=true"}) == "");
  // 15 steps of 24 samples, a fourth of them from a source of 10 samples.
  CHECK(message({"data.train=" + list, "training.steps=15", "data.document_mask=true"}) == "");
  CHECK_THAT(message({"data.train=" + list, "training.steps=15"}), Catch::Matchers::Contains("document mask"));
  CHECK_THAT(message({"data.train=" + list, "training.steps=16"}),
             Catch::Matchers::Contains("read it 9.600 times, and its epochs are 9.000"));
}

TEST_CASE("a loss that is not finite changes no weight", "[resume]") {
  const Fixture f;
  const TinyModel& model = tiny_models()[0];
  const auto run = [&](const std::string& name, std::vector<std::string> overrides) {
    Config config = resolve(parse_config(system_files(), "tiny.yaml", f.yaml(model, name), overrides), 2);
    config.model.initializer_range = std::nan("");
    run_threads(2, [&](World& world) { Trainer(config, world, system_files(), system_clock(), true).run(); });
  };
  for (const auto& options :
       {std::vector<std::string>{"parallel.data=2"},
        std::vector<std::string>{"guard.on_nonfinite=skip", "parallel.pipeline=2"},
        // Never the end of it: then there is nothing to save.
        std::vector<std::string>{"guard.on_nonfinite=skip", "guard.max_skips=1000", "parallel.pipeline=2"}}) {
    try {
      run(format("bad-{}", options.size()), options);
      FAIL("no error");
    } catch (const Error& e) {
      CHECK(e.code() == ExitCode::nonfinite);
      CHECK(std::string(e.what()).find("not finite") != std::string::npos);
    }
    CHECK(list_steps(system_files(), checkpoints_directory(f.directory / format("bad-{}", options.size()))).empty());
  }
}

TEST_CASE("training on learnable tokens learns", "[resume]") {
  const Fixture f;
  train_tiny(f.yaml(tiny_models()[0], "learn"), 1, {"training.steps=60", "optimizer.lr=1.0e-2", "eval.every=20"});
  double first = 0, last = 0;
  for (const std::string& line : numbers_of(f.directory / "learn")) {
    const auto at = line.find("\"eval_loss\":");
    if (at == std::string::npos) continue;
    last = std::stod(line.substr(at + 12));
    if (first == 0) first = last;
  }
  CHECK(last < first);
  CHECK(last < 3.2);  // a uniform guess over the 40 tokens in use is 3.7 nats
}

TEST_CASE("a stop signal saves at the step boundary and the run goes on later", "[resume]") {
  const Fixture f;
  const std::string yaml = f.yaml(tiny_models()[0], "stopped");
  std::thread killer([&] {
    // As soon as the run has written its first step.
    const auto written = [&] {
      std::error_code none;
      const auto size = std::filesystem::file_size(f.directory / "stopped/metrics.jsonl", none);
      return !none && size > 0;
    };
    for (int i = 0; i < 2000 && !written(); ++i) system_clock().sleep(0.005);
    std::raise(SIGUSR1);
  });
  const ExitCode code = train_tiny(yaml, 2, {"training.steps=100000", "lr_schedule.type=constant"});
  killer.join();
  CHECK(code == ExitCode::stopped);
  const auto steps = list_steps(system_files(), checkpoints_directory(f.directory / "stopped"));
  REQUIRE(steps.size() == 1);
  CHECK(steps[0] < 100000);
  CHECK(train_tiny(yaml, 2, {format("training.steps={}", steps[0] + 1), "lr_schedule.type=constant"}) == ExitCode::ok);
}
