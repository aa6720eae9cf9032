// What a run tells its watchdogs, the proof of a shared directory, and clocks that go wrong.

#include <cerrno>
#include <filesystem>

#include "lib/train/run_watch.h"
#include "lib/train/shared_directory.h"
#include "tests/support/catch.h"
#include "tests/train/tiny_job.h"
#include "tests/train/tiny_run.h"

using namespace dstrain;
using namespace dstrain::test;

TEST_CASE("the median of recent steps forgets old ones", "[watch]") {
  RecentSteps steps;
  CHECK(steps.median() == 0);
  steps.add(10);  // ten times slower than those that follow
  for (int i = 0; i < 20; ++i) steps.add(1);
  CHECK(steps.median() == 1);
  for (int i = 0; i < 63; ++i) steps.add(3);
  CHECK(steps.median() == 3);
}

TEST_CASE("a step's limit is that of the start, then 60 s or ten medians, or the job's", "[watch]") {
  const auto world = World::make();
  WatchdogConfig config;
  RunWatch watch(config, *world, {});
  watch.step(1);
  CHECK(watch.here()->limit == 600);
  watch.step_took(0.5);
  watch.step(2);
  CHECK(watch.here()->limit == 60);
  CHECK(watch.here()->step == 2);
  for (int i = 0; i < 9; ++i) watch.step_took(20);
  watch.step(3);
  CHECK(watch.here()->limit == 200);
  watch.evaluation();
  CHECK(watch.here()->limit == 600);
  CHECK(watch.forecast(5).seconds == 45);
  CHECK(watch.forecast(5).too_long);
  config.limit = 3;
  config.grace = 100;
  RunWatch other(config, *world, {});
  other.step_took(20);
  other.step(1);
  CHECK(other.here()->limit == 3);
  CHECK_FALSE(other.forecast(5).too_long);
}

namespace {

// The files of a host on which `directory` is another place.
class OtherHost final : public Files {
 public:
  OtherHost(std::string directory, std::string place) : directory_(std::move(directory)), place_(std::move(place)) {}
  std::unique_ptr<File> open(const std::string& path, OpenMode mode) const override {
    return system_files().open(there(path), mode);
  }
  void rename(const std::string& from, const std::string& to) const override {
    system_files().rename(there(from), there(to));
  }
  void remove(const std::string& path) const override { system_files().remove(there(path)); }
  void make_directory(const std::string& path) const override { system_files().make_directory(there(path)); }
  void sync_directory(const std::string& path) const override { system_files().sync_directory(there(path)); }
  bool exists(const std::string& path) const override { return system_files().exists(there(path)); }
  bool is_directory(const std::string& path) const override { return system_files().is_directory(there(path)); }
  std::vector<std::string> list(const std::string& path) const override { return system_files().list(there(path)); }
  std::uint64_t available(const std::string& path) const override { return system_files().available(there(path)); }

 private:
  std::string there(const std::string& path) const {
    return path.starts_with(directory_) ? place_ + path.substr(directory_.size()) : path;
  }
  std::string directory_, place_;
};

// A wall clock that is off by so much, and steps back by a second at every look.
class BadClock final : public Clock {
 public:
  explicit BadClock(std::int64_t off) : off_(off) {}
  double now() const override { return system_clock().now(); }
  std::int64_t wall() const override { return system_clock().wall() + off_ - looks_++; }
  void sleep(double seconds) const override { system_clock().sleep(seconds); }

 private:
  std::int64_t off_;
  mutable std::atomic<std::int64_t> looks_{0};
};

}  // namespace

TEST_CASE("every rank proves that it sees the run directory, or the run is refused", "[watch]") {
  const TemporaryDirectory scratch;
  const std::string directory = scratch / "run", elsewhere = scratch / "elsewhere";
  std::filesystem::create_directories(directory);
  std::filesystem::create_directories(elsewhere);
  const auto prove = [&](int stranger) {
    run_threads(3, [&](World& world) {
      const OtherHost other(directory, elsewhere);
      const Files& files = world.rank() == stranger ? static_cast<const Files&>(other) : system_files();
      const auto group = world.group(Poster::checkpoint, GroupKind::control, std::vector<int>{0, 1, 2});
      Agreement everyone(*group);
      prove_shared(files, system_clock(), directory, format("host{}", world.rank()), everyone, 0.2);
    });
  };
  CHECK_NOTHROW(prove(-1));
  try {
    prove(2);
    FAIL("no error");
  } catch (const Error& e) {
    CHECK(e.code() == ExitCode::usage);
    CHECK(std::string(e.what()) == format("rank 2: host host2 does not see the run directory {} that rank 0 on host "
                                          "host0 writes to: all hosts must share it",
                                          directory));
  }
  CHECK(std::filesystem::is_empty(directory));
}

TEST_CASE("clocks a year behind, ten years ahead and stepping back change nothing in a run", "[watch]") {
  const TemporaryDirectory scratch;
  write_tokens(scratch / "train", 40 * kLength + 1, 1);
  write_tokens(scratch / "eval", 9 * kLength + 5, 2);
  constexpr std::int64_t kYear = 365 * 86400;
  const BadClock behind(-kYear), ahead(10 * kYear);
  const auto train = [&](const char* name, const Clock& clock) {
    train_tiny(tiny_run_yaml(tiny_models()[0].yaml, scratch / "", scratch / name), 2,
               {"parallel.data=2", "checkpoint.every=4"}, system_files(), clock);
  };
  const auto forget = [&](std::initializer_list<Index> steps) {
    for (const Index step : steps)
      std::filesystem::remove_all(checkpoints_directory(scratch / "skewed") + "/" + step_name(step));
  };
  train("whole", system_clock());
  // Each goes on from what the one before has saved.
  train("skewed", ahead);
  forget({12});
  train("skewed", behind);
  forget({8, 12});
  train("skewed", ahead);
  CHECK(numbers_of(scratch / "skewed") == numbers_of(scratch / "whole"));
  CHECK(checkpoint_tensors(scratch / "skewed", 12) == checkpoint_tensors(scratch / "whole", 12));
}

namespace {

// Files on which rank 1's trace cannot be written: an error that its peers do not share.
class NoTrace final : public Files {
 public:
  std::unique_ptr<File> open(const std::string& path, OpenMode mode) const override {
    if (path.find("trace-1.json") != std::string::npos) throw FileError(ExitCode::write, path + ": no trace", EIO);
    return system_files().open(path, mode);
  }
  void rename(const std::string& from, const std::string& to) const override { system_files().rename(from, to); }
  void remove(const std::string& path) const override { system_files().remove(path); }
  void make_directory(const std::string& path) const override { system_files().make_directory(path); }
  void sync_directory(const std::string& path) const override { system_files().sync_directory(path); }
  bool exists(const std::string& path) const override { return system_files().exists(path); }
  bool is_directory(const std::string& path) const override { return system_files().is_directory(path); }
  std::vector<std::string> list(const std::string& path) const override { return system_files().list(path); }
  std::uint64_t available(const std::string& path) const override { return system_files().available(path); }
};

}  // namespace

TEST_CASE("a rank that fails alone writes exit.json itself, and its peers leave its reason there", "[watch]") {
  const TemporaryDirectory scratch;
  write_tokens(scratch / "train", 40 * kLength + 1, 1);
  write_tokens(scratch / "eval", 9 * kLength + 5, 2);
  CHECK_THROWS_AS(train_tiny(tiny_run_yaml(tiny_models()[0].yaml, scratch / "", scratch / "run"), 3,
                             {"parallel.data=3", "profile.steps=[2, 3]"}, NoTrace()),
                  Error);
  const std::string end = read_file(system_files(), scratch / "run/exit.json");
  INFO(end);
  CHECK(end.find("\"code\":5,") != std::string::npos);
  CHECK(end.find("no trace") != std::string::npos);
}
