// Threads beside training: a whole run with all of them, and what happens when one throws.
#include <chrono>
#include <fstream>

#include "tests/support/catch.h"
#include "tests/train/tiny_run.h"

using namespace dstrain;
using namespace dstrain::test;

namespace {

constexpr Index kSteps = 12;

// Files whose operations on paths with a certain part throw, from a certain one on for a while.
class ThrowingFiles final : public Files {
 public:
  ThrowingFiles(std::string part, const char* operation, int begin, int count)
      : part_(std::move(part)), operation_(operation), begin_(begin), end_(begin + count) {}
  int calls() const { return calls_; }

  std::unique_ptr<File> open(const std::string& path, OpenMode mode) const override {
    meet("open", path);
    return std::make_unique<Wrapped>(*this, path, system_files().open(path, mode));
  }
  void rename(const std::string& from, const std::string& to) const override { system_files().rename(from, to); }
  void remove(const std::string& path) const override { system_files().remove(path); }
  void make_directory(const std::string& path) const override { system_files().make_directory(path); }
  void sync_directory(const std::string& path) const override { system_files().sync_directory(path); }
  bool exists(const std::string& path) const override { return system_files().exists(path); }
  bool is_directory(const std::string& path) const override { return system_files().is_directory(path); }
  std::vector<std::string> list(const std::string& path) const override { return system_files().list(path); }
  std::uint64_t available(const std::string& path) const override { return system_files().available(path); }

 private:
  class Wrapped final : public File {
   public:
    Wrapped(const ThrowingFiles& files, std::string path, std::unique_ptr<File> real)
        : files_(files), path_(std::move(path)), real_(std::move(real)) {}
    void pread(std::span<std::byte> into, std::uint64_t offset) const override {
      files_.meet("pread", path_);
      real_->pread(into, offset);
    }
    void pwrite(std::span<const std::byte> from, std::uint64_t offset) override {
      files_.meet("pwrite", path_);
      real_->pwrite(from, offset);
    }
    std::uint64_t size() const override { return real_->size(); }
    void truncate(std::uint64_t size) override { real_->truncate(size); }
    void sync() override { real_->sync(); }
    void close() override { real_->close(); }
    FileLock try_lock() override { return real_->try_lock(); }

   private:
    const ThrowingFiles& files_;
    std::string path_;
    std::unique_ptr<File> real_;
  };
  void meet(const char* operation, const std::string& path) const {
    if (std::string(operation) != operation_ || path.find(part_) == path.npos) return;
    const int call = ++calls_;
    if (call >= begin_ && call < end_) throw std::runtime_error(format("thrown by call {} of {}", call, operation_));
  }

  std::string part_, operation_;
  int begin_, end_;
  mutable std::atomic<int> calls_{0};
};

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
  const ThrowingFiles count("train-", "pread", 1 << 30, 0);
  f.train("whole", count);
  REQUIRE(count.calls() > 40);
  for (const int call : {count.calls() - 60, count.calls() - 40}) {
    const ThrowingFiles files("train-", "pread", call, 1);
    const auto begin = std::chrono::steady_clock::now();
    std::string why;
    try {
      f.train(format("loader-{}", call), files);
    } catch (const std::exception& e) {
      why = e.what();
    }
    INFO(call << " of " << count.calls());
    CHECK_THAT(why,
               Catch::Matchers::Contains("thrown by call") || Catch::Matchers::Contains("could not read the step"));
    CHECK(std::chrono::steady_clock::now() - begin < std::chrono::seconds(60));
    const std::string exit = read_file(system_files(), f.directory / format("loader-{}/exit.json", call));
    CHECK(exit.find("\"code\":0") == exit.npos);
  }
}

TEST_CASE("what a writer's thread throws costs a checkpoint and no more", "[threads]") {
  const Fixture f;
  f.train("whole");
  const ThrowingFiles files("step_00000004.partial", "open", 1, 1);
  f.train("writer", files);
  CHECK_THAT(f.log_of("writer"),
             Catch::Matchers::Contains("checkpoint of step 4 failed (1 so far), training goes on") &&
                 Catch::Matchers::Contains("thrown by call 1 of open"));
  CHECK(checkpoint_tensors(f.directory / "writer", kSteps) == checkpoint_tensors(f.directory / "whole", kSteps));
}

TEST_CASE("what the metrics file throws is dropped and counted", "[threads]") {
  const Fixture f;
  f.train("whole");
  const ThrowingFiles files("metrics.jsonl", "pwrite", 5, 3);
  f.train("lines", files);
  CHECK_THAT(f.log_of("lines"), Catch::Matchers::Contains("3 lines of"));
  CHECK(checkpoint_tensors(f.directory / "lines", kSteps) == checkpoint_tensors(f.directory / "whole", kSteps));
}
