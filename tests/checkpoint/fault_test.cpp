#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include <atomic>
#include <csignal>
#include <cstdio>
#include <thread>

#include "lib/core/abandonable_files.h"
#include "tests/checkpoint/made_up_model.h"
#include "tests/support/catch.h"
#include "tests/support/faulty_files.h"
#include "tests/support/forwarding_files.h"

using namespace dstrain;
using namespace dstrain::test;
using Catch::Matchers::Contains;

TEST_CASE("any failing file call leaves the old checkpoint, and the new one whole or absent", "[checkpoint]") {
  const TemporaryDirectory clean;
  save_alone(system_files(), clean.path, 1, 1);
  save_alone(system_files(), clean.path, 2, 1);
  const auto prepared = [&](const std::string& path) {  // with a crashed save and an old checkpoint to clean up
    fs::copy(clean.path, path, fs::copy_options::recursive);
    fs::create_directory(fs::path(path) / "step_00000009.partial");
  };
  int points = 0, published = 0;
  for (const Fault& kind : {Fault{.error = EIO}, Fault{.error = EDQUOT}, Fault{.error = ENOSPC, .partial = true},
                            Fault{.sticky = true, .error = EIO}, Fault{.sticky = true, .error = ENOSPC},
                            Fault{.sticky = true, .error = EDQUOT, .partial = true}}) {
    for (int n = 1;; ++n) {
      INFO("call " << n << ": " << std::strerror(kind.error) << (kind.sticky ? ", and all later" : ""));
      const TemporaryDirectory t;
      prepared(t.path);
      Fault fault = kind;
      fault.at = n;
      const FaultyFiles files(system_files(), fault);
      bool threw = false;
      try {
        save_alone(files, t.path, 3, 1);
      } catch (const Error& e) {
        threw = true;
        CHECK(e.code() == ExitCode::write);
        CHECK_THAT(e.what(), Contains("injected") && Contains(std::strerror(kind.error)));
      }
      if (!files.failed()) {
        REQUIRE(n > 20);
        break;
      }
      ++points;
      // Once the oldest is being removed, the new one is there for good.
      const bool removing =
          std::ranges::any_of(names_in(t.path), [](const std::string& name) { return name.ends_with(kTrashSuffix); });
      std::vector<std::string> lines;
      const Index step = load(t.path, 3, 1, &lines);
      CHECK(lines.empty());
      CHECK((step == 2 || step == 3));
      if (!threw) CHECK(step == 3);
      if (files.lost_bytes() && !removing) CHECK(threw);
      CHECK(broken(t.path) == 0);
      if (!kind.sticky)
        CHECK_FALSE(fs::exists(fs::path(t.path) / (step_name(3) + kPartialSuffix)));  // its room is free
      published += step == 3;
      // The next save works, and cleans up.
      save_alone(system_files(), t.path, 4, 1);
      CHECK(load(t.path, 3) == 4);
      CHECK(names_in(t.path).size() == 2);
    }
  }
  CHECK(published > 0);           // some calls come after the rename
  CHECK(published < points / 2);  // most come before it
  std::printf("proof: every n-th file call of a save fails: %d points, at all of them a good checkpoint\n", points);
}

TEST_CASE("any failing file call of any rank fails the save on all, and nothing is published", "[checkpoint]") {
  const TemporaryDirectory clean;
  run_threads(3, [&](World& w) { save_step(w, system_files(), clean.path, 1, 1); });
  int points = 0;
  for (int rank = 0; rank < 3; ++rank)
    for (int n = 1;; ++n) {
      INFO("rank " << rank << ", call " << n);
      const TemporaryDirectory t;
      fs::copy(clean.path, t.path, fs::copy_options::recursive);
      std::mutex mutex;
      int heard = 0;
      bool failed = false, lost_bytes = false;
      run_threads(3, [&](World& w) {
        const FaultyFiles faulty(system_files(), {.at = w.rank() == rank ? n : 0, .error = EIO});
        std::string text;
        try {
          save_step(w, faulty, t.path, 2, 1);
        } catch (const Error& e) {
          text = e.what();
        }
        const std::scoped_lock lock(mutex);
        heard += text.find(format("rank {}: injected", rank)) != text.npos;
        failed = failed || faulty.failed();
        lost_bytes = lost_bytes || faulty.lost_bytes();
      });
      if (!failed) break;
      ++points;
      const Index step = load(t.path, 3, 2);
      CHECK((heard == 0 || heard == 3));
      if (lost_bytes) CHECK(heard == 3);
      if (heard == 0) CHECK(step == 2);  // a warning of rank 0 at most: the checkpoint stands
      CHECK((step == 1 || step == 2));
    }
  CHECK(points > 60);
  std::printf("proof: every n-th file call of each of 3 ranks fails: %d points, all ranks agree\n", points);
}

TEST_CASE("when one rank cannot write, all ranks learn why and nothing is published", "[checkpoint]") {
  const TemporaryDirectory t;
  run_threads(3, [&](World& w) { save_step(w, system_files(), t.path, 1, 1); });
  std::mutex mutex;
  std::vector<std::string> heard;
  run_threads(3, [&](World& w) {
    const FaultyFiles faulty(system_files(), {.at = w.rank() == 2 ? 5 : 0});
    try {
      save_step(w, faulty, t.path, 2, 1);
    } catch (const Error& e) {
      const std::scoped_lock lock(mutex);
      if (e.code() == ExitCode::write) heard.push_back(e.what());
    }
  });
  REQUIRE(heard.size() == 3);
  for (const auto& text : heard) CHECK_THAT(text, Contains("checkpoint of step 2: rank 2: injected"));
  CHECK(names_in(t.path) == std::vector<std::string>{"step_00000001"});
  CHECK(load(t.path, 3, 2) == 1);
}

TEST_CASE("too little room is found before anything is written", "[checkpoint]") {
  const TemporaryDirectory t;
  CHECK_NOTHROW(require_free_space(system_files(), join_path(t.path, "not/there/yet"), 1));
  CHECK_THROWS_WITH(require_free_space(system_files(), t.path, 1ull << 60), Contains("are free"));
}

TEST_CASE("a limit of the file size cuts a write short: an error, and the old checkpoint stays", "[checkpoint]") {
  const TemporaryDirectory t;
  save_alone(system_files(), t.path, 1);
  std::uintmax_t largest = 0;
  for (const auto& f : fs::recursive_directory_iterator(t.path))
    if (f.is_regular_file()) largest = std::max(largest, f.file_size());
  int points = 0;
  for (rlim_t limit = 0; limit < largest; limit += std::max<rlim_t>(1, largest / 25)) {
    const pid_t child = fork();
    REQUIRE(child >= 0);
    if (child == 0) {
      std::signal(SIGXFSZ, SIG_IGN);
      const rlimit most{limit, limit};
      setrlimit(RLIMIT_FSIZE, &most);
      try {
        save_alone(system_files(), t.path, 2);
        _exit(1);
      } catch (const Error& e) {
        _exit(e.code() == ExitCode::write && std::string(e.what()).find("File too large") != std::string::npos ? 0 : 2);
      }
    }
    int status = 0;
    REQUIRE(waitpid(child, &status, 0) == child);
    CHECK((WIFEXITED(status) && WEXITSTATUS(status) == 0));
    CHECK(names_in(t.path) == std::vector<std::string>{"step_00000001"});
    ++points;
  }
  CHECK(load(t.path, 2) == 1);
  std::printf("proof: short writes by a limit of the file size: %d limits, 0 lost\n", points);
}

TEST_CASE("a full disk of one MiB: an error, and the old checkpoint stays", "[checkpoint]") {
  const TemporaryDirectory t;
  const std::string disk = join_path(t.path, "disk");
  fs::create_directory(disk);
  if (mount("tmpfs", disk.c_str(), "tmpfs", 0, "size=1m") != 0) {
    std::printf("not run: a tmpfs cannot be mounted here (%s)\n", std::strerror(errno));
    return;
  }
  struct Unmount {
    std::string path;
    ~Unmount() { umount2(path.c_str(), MNT_DETACH); }
  } const unmount{disk};
  const std::string run = join_path(disk, "checkpoints");
  save_alone(system_files(), run, 1);
  std::uintmax_t needed = 0;
  for (const auto& f : fs::recursive_directory_iterator(run))
    if (f.is_regular_file()) needed += (f.file_size() + 4095) / 4096 * 4096;
  int points = 0;
  // From no room at all to nearly enough. Where the check beforehand would refuse, the writer is told of more room.
  struct Roomy final : ForwardingFiles {
    std::uint64_t available(const std::string&) const override { return 1ull << 40; }
  } const roomy;
  for (std::uintmax_t room = 0; room + 4096 < needed; room += 4096) {
    const std::uint64_t free = system_files().available(disk);
    REQUIRE(free > room);
    spill(join_path(disk, "fill"), std::string(free - room, 'x'));
    for (const Files* files : {&system_files(), static_cast<const Files*>(&roomy)}) try {
        save_alone(*files, run, 2);
        FAIL("saved on a full disk");
      } catch (const Error& e) {
        CHECK(e.code() == ExitCode::write);
      }
    fs::remove(join_path(disk, "fill"));
    CHECK(names_in(run) == std::vector<std::string>{"step_00000001"});
    CHECK(load(run, 2) == 1);
    ++points;
  }
  save_alone(system_files(), run, 2);
  CHECK(load(run, 2) == 2);
  std::printf("proof: a disk of 1 MiB with room for a part: %d amounts of room, 0 lost\n", points);
}

namespace {

// Bytes that are written arrive changed, as by a network file system or a controller that lies.
class LyingFiles final : public ForwardingFiles {
 public:
  std::unique_ptr<File> open(const std::string& path, OpenMode mode) const override {
    auto file = real_.open(path, mode);
    if (mode != OpenMode::create || !path.ends_with(".h5")) return file;
    return std::make_unique<Liar>(std::move(file), path);
  }

 private:
  class Liar final : public ForwardingFile {
   public:
    Liar(std::unique_ptr<File> real, std::string path) : ForwardingFile(std::move(real)), path_(std::move(path)) {}
    void sync() override {  // after the hashes were made
      real_->sync();
      std::string bytes = slurp(path_);
      bytes[bytes.size() / 3] ^= 4;
      spill(path_, bytes);
    }

   private:
    std::string path_;
  };
};

}  // namespace

TEST_CASE("readback finds what was written and is not there; without it the next start does", "[checkpoint]") {
  const TemporaryDirectory t;
  run_threads(3, [&](World& w) { save_step(w, system_files(), t.path, 1, 1); });
  const LyingFiles lying;
  const auto save = [&](bool readback, int liar) {
    std::mutex mutex;
    std::string why;
    run_threads(3, [&](World& w) {
      const auto group = everyone(w);
      Parts parts = layout(1, w.rank(), w.size());
      parts.fill(2);
      try {
        const Files& files = w.rank() == liar ? static_cast<const Files&>(lying) : system_files();
        CheckpointWriter(files, t.path, *group, 10, readback).save(state_of(2), parts.slabs);
      } catch (const Error& e) {
        const std::scoped_lock lock(mutex);
        if (w.rank() == 0) why = e.what();
      }
    });
    return why;
  };
  for (int liar = 0; liar < 3; ++liar) {
    CHECK_THAT(save(true, liar), Contains(shard_name(liar)) && Contains("the manifest says"));
    CHECK(names_in(t.path) == std::vector<std::string>{"step_00000001"});
  }
  CHECK(save(true, -1) == "");
  CHECK(load(t.path, 3, 2) == 2);
  fs::remove_all(join_path(t.path, "step_00000002"));
  CHECK(save(false, 1) == "");
  std::vector<std::string> lines;
  CHECK(load(t.path, 3, 2, &lines) == 1);
  CHECK(lines.size() == 1);
}

TEST_CASE("files are taken from a writer that does not come back", "[checkpoint]") {
  const TemporaryDirectory t;
  AbandonableFiles files(system_files());
  save_alone(files, t.path, 1);
  files.abandon("given up");
  CHECK_THROWS_WITH(save_alone(files, t.path, 2), Contains("given up"));
  CHECK_THROWS_WITH(files.exists(t.path), "given up");
  files.restore();
  save_alone(files, t.path, 2);
  CHECK(load(t.path, 2) == 2);
  // A parked thread never comes back from its next call; it is left behind with all that it uses.
  struct Left {
    AbandonableFiles files{system_files()};
    std::atomic<int> calls{0};
  };
  const auto left = std::make_shared<Left>();
  std::thread([left, path = t.path] {
    for (;;) {
      left->files.exists(path);
      ++left->calls;
    }
  }).detach();
  while (left->calls < 100) usleep(1000);
  left->files.park();
  usleep(50000);
  const int calls = left->calls;
  usleep(100000);
  CHECK(left->calls == calls);
}
