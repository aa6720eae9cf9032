// Threads beside training: a whole run with all of them, and what happens when one throws.
#include <chrono>
#include <fstream>

#include "tests/support/catch.h"
#include "tests/support/faulty_files.h"
#include "tests/train/tiny_run.h"

using namespace dstrain;
using namespace dstrain::test;

namespace {

constexpr Index kSteps = 12;

// Calls of an operation on paths with a certain part, of which some throw what is no Error.
Fault throwing(const char* part, const char* operation, int begin, int count) {
  return {.at = begin, .within = part, .operation = operation, .count = count, .unknown = true};
}

struct Fixture {
  TemporaryDirectory directory;
  Fixture() {
    write_tokens(directory / "train", 40 * kLength + 1, 1);
    write_tokens(directory / "eval", 9 * kLength + 5, 2);
  }
  // Two data ranks of two stages, all threads at work. Throws what the run throws.
  void train(const std::string& name, const Files& files = system_files()) const {
    train_tiny(tiny_run_yaml(tiny_models()[1].yaml, directory / "", directory / name), 4,
               {"parallel.data=2", "parallel.pipeline=2", "checkpoint.every=2", "observe.tensorboard=true",
                "run.threads=2", "guard.recompute_every=3", "guard.replica_hash_every=3"},
               files);
  }
  std::string log_of(const std::string& name) const {
    return read_file(system_files(), directory / (name + "/log.txt"));
  }
};

}  // namespace

TEST_CASE("a run with all its threads, twice: the same bits", "[threads]") {
  const Fixture f;
  f.train("one");
  f.train("two");
  CHECK(checkpoint_tensors(f.directory / "one", kSteps) == checkpoint_tensors(f.directory / "two", kSteps));
}

TEST_CASE("what a loader's thread throws ends the run with its own words, at once", "[threads]") {
  const Fixture f;
  const FaultyFiles count(system_files(), throwing("train-", "read", 0, 0));
  f.train("whole", count);
  REQUIRE(count.calls() > 40);
  for (const int call : {count.calls() - 60, count.calls() - 40}) {
    const FaultyFiles files(system_files(), throwing("train-", "read", call, 1));
    const auto begin = std::chrono::steady_clock::now();
    std::string why;
    try {
      f.train(format("loader-{}", call), files);
    } catch (const std::exception& e) {
      why = e.what();
    }
    INFO(call << " of " << count.calls());
    CHECK_THAT(why, Catch::Matchers::Contains("injected: cannot read") ||
                        Catch::Matchers::Contains("could not read the step"));
    CHECK(std::chrono::steady_clock::now() - begin < std::chrono::seconds(60));
    const std::string exit = read_file(system_files(), f.directory / format("loader-{}/exit.json", call));
    CHECK(exit.find("\"code\":0") == exit.npos);
  }
}

TEST_CASE("what a writer's thread throws costs a checkpoint and no more", "[threads]") {
  const Fixture f;
  f.train("whole");
  const FaultyFiles files(system_files(), throwing("step_00000004.partial", "open", 1, 1));
  f.train("writer", files);
  CHECK_THAT(f.log_of("writer"),
             Catch::Matchers::Contains("checkpoint of step 4 failed (1 so far), training goes on") &&
                 Catch::Matchers::Contains("injected: cannot open"));
  CHECK(checkpoint_tensors(f.directory / "writer", kSteps) == checkpoint_tensors(f.directory / "whole", kSteps));
}

TEST_CASE("what the metrics file throws is dropped and counted", "[threads]") {
  const Fixture f;
  f.train("whole");
  const FaultyFiles files(system_files(), throwing("metrics.jsonl", "write", 5, 3));
  f.train("lines", files);
  CHECK_THAT(f.log_of("lines"), Catch::Matchers::Contains("3 lines of"));
  CHECK(checkpoint_tensors(f.directory / "lines", kSteps) == checkpoint_tensors(f.directory / "whole", kSteps));
}

TEST_CASE("what the TensorBoard file throws is dropped and counted", "[threads]") {
  const Fixture f;
  f.train("whole");
  const FaultyFiles files(system_files(), throwing("tfevents", "write", 5, 4));
  f.train("events", files);
  CHECK_THAT(f.log_of("events"), Catch::Matchers::Contains("4 events of"));
  CHECK(checkpoint_tensors(f.directory / "events", kSteps) == checkpoint_tensors(f.directory / "whole", kSteps));
}

TEST_CASE("a TensorBoard file that cannot be made refuses the run", "[threads]") {
  const Fixture f;
  const FaultyFiles files(system_files(), {.at = 1, .within = "tfevents", .operation = "open"});
  try {
    f.train("refused", files);
    FAIL("the run went on");
  } catch (const Error& e) {
    CHECK(e.code() == ExitCode::write);
    CHECK_THAT(e.what(), Catch::Matchers::Contains("injected: cannot open"));
  }
}
