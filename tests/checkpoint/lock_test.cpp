#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <atomic>
#include <cstdio>
#include <ctime>
#include <new>

#include "lib/checkpoint/run_lock.h"
#include "tests/checkpoint/made_up_model.h"
#include "tests/support/catch.h"
#include "tests/support/forwarding_files.h"

using namespace dstrain;
using namespace dstrain::test;
using Catch::Matchers::Contains;

TEST_CASE("a run directory has one owner", "[checkpoint]") {
  const TemporaryDirectory t;
  const std::string run = join_path(t.path, "run");
  {
    const RunLock lock(system_files(), run, "node7", system_clock());
    CHECK_THROWS_WITH(RunLock(system_files(), run, "node8", system_clock()),
                      Contains("is in use by host node7, process " + std::to_string(getpid()) + ", started 2"));
  }
  CHECK(slurp(fs::path(run) / "lock").empty());  // nobody's
  // An owner that dies leaves its text, and no lock.
  const pid_t child = fork();
  if (child == 0) {
    const RunLock lock(system_files(), run, "dead", system_clock());
    kill(getpid(), SIGKILL);
  }
  waitpid(child, nullptr, 0);
  CHECK_THAT(slurp(fs::path(run) / "lock"), Contains("host dead"));
  const RunLock lock(system_files(), run, "node9", system_clock());
  CHECK_THAT(slurp(fs::path(run) / "lock"), Contains("host node9"));
}

namespace {

// A file system without locks.
class LocklessFiles final : public ForwardingFiles {
 public:
  std::unique_ptr<File> open(const std::string& path, OpenMode mode) const override {
    return std::make_unique<Lockless>(real_.open(path, mode));
  }

 private:
  struct Lockless final : ForwardingFile {
    using ForwardingFile::ForwardingFile;
    FileLock try_lock() override { return FileLock::unsupported; }
  };
};

void age(const std::string& path, int seconds) {
  timespec now{};
  clock_gettime(CLOCK_REALTIME, &now);
  now.tv_sec -= seconds;
  const timespec times[2] = {now, now};
  REQUIRE(utimensat(AT_FDCWD, path.c_str(), times, 0) == 0);
}

std::string refusal(const Files& files, const std::string& run, const std::string& host = "here") {
  try {
    const RunLock lock(files, run, host, system_clock());
    return "";
  } catch (const Error& e) {
    CHECK(e.code() == ExitCode::write);
    return e.what();
  }
}

// `racers` processes at once in one directory, `rounds` times: how often all but one were refused, naming the one.
void race(const Files& files, int rounds, int racers) {
  int good = 0;
  double worst = 0;
  for (int round = 0; round < rounds; ++round) {
    const TemporaryDirectory t;
    const std::string run = join_path(t.path, "run");
    struct Shared {
      std::atomic<int> go{0}, decided{0}, winners{0}, winner{0}, named{0};
      std::atomic<double> slowest{0};
    };
    auto* shared =
        new (mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0)) Shared;
    std::vector<pid_t> children;
    for (int i = 0; i < racers; ++i) {
      const pid_t child = fork();
      REQUIRE(child >= 0);
      if (child > 0) {
        children.push_back(child);
        continue;
      }
      while (shared->go == 0) usleep(100);
      const double begin = system_clock().now();
      std::string text;
      try {
        const RunLock lock(files, run, "here", system_clock());
        ++shared->winners;
        shared->winner = getpid();
        ++shared->decided;
        while (shared->decided < racers) usleep(1000);
        _exit(0);
      } catch (const std::exception& e) {
        text = e.what();
      }
      const double seconds = system_clock().now() - begin;
      for (double s = shared->slowest; s < seconds && !shared->slowest.compare_exchange_weak(s, seconds);) {
      }
      ++shared->decided;
      while (shared->winner == 0 && shared->decided < racers) usleep(1000);
      shared->named += text.find(format("process {},", shared->winner.load())) != text.npos;
      _exit(0);
    }
    shared->go = 1;
    for (const pid_t c : children) waitpid(c, nullptr, 0);
    good += shared->winners == 1 && shared->named == racers - 1;
    worst = std::max(worst, shared->slowest.load());
    munmap(shared, sizeof(Shared));
  }
  CHECK(good == rounds);
  std::printf(
      "proof: %d processes at once in one directory, %d rounds: %d with one winner whom all losers name; the slowest "
      "loser knew after %.3f s\n",
      racers, rounds, good, worst);
}

}  // namespace

TEST_CASE("a lease, where the file system has no locks", "[checkpoint]") {
  const TemporaryDirectory t;
  const LocklessFiles files;
  const std::string run = join_path(t.path, "run"), lease = join_path(run, "lock.lease");
  {
    const RunLock lock(files, run, "here", system_clock());
    CHECK(lock.is_lease());
    CHECK_THAT(refusal(files, run), Contains(format("is in use by host here, process {}, started 2", getpid())));
    CHECK_THAT(refusal(files, run, "elsewhere"), Contains("lease renewed 0 s ago, free after 60 s"));
    CHECK_FALSE(lock.lost());
  }
  CHECK_FALSE(fs::exists(lease));
  // Of another host: free a minute after its last renewal, by the file system's clock.
  const LockOwner self = lock_owner("here", system_clock());
  LockOwner other = self;
  other.host = "elsewhere";
  for (const int seconds : {0, 30, 58}) {
    spill(lease, other.to_text());
    age(lease, seconds);
    CHECK_THAT(refusal(files, run), Contains("host elsewhere"));
  }
  age(lease, 61);
  CHECK(refusal(files, run) == "");
  // Of this host: free when its process is dead, or another one has its number, or the machine was started anew.
  const pid_t child = fork();
  if (child == 0) _exit(0);
  waitpid(child, nullptr, 0);
  LockOwner dead = self, reused = self, before = self;
  dead.process = child;
  reused.process_start = "12345";
  before.boot = "another-boot";
  for (const LockOwner& owner : {dead, reused, before}) {
    spill(lease, owner.to_text());
    CHECK(refusal(files, run) == "");
  }
  spill(lease, self.to_text());
  CHECK_THAT(refusal(files, run), Contains("host here"));
  spill(lease, "");  // one that has it, and has not written yet
  CHECK_THAT(refusal(files, run), Contains("another process"));
  age(lease, 61);
  CHECK(refusal(files, run) == "");
  CHECK(names_in(run) == std::vector<std::string>{"lock"});
}

TEST_CASE("a lease is renewed, and its loss is noticed", "[checkpoint]") {
  struct FastClock final : Clock {  // a hundred times as fast
    double now() const override { return 100 * system_clock().now(); }
    std::int64_t wall() const override { return system_clock().wall(); }
    void sleep(double seconds) const override { system_clock().sleep(seconds / 100); }
  } const clock;
  const TemporaryDirectory t;
  const LocklessFiles files;
  const std::string run = join_path(t.path, "run"), lease = join_path(run, "lock.lease");
  const RunLock lock(files, run, "here", clock);
  age(lease, 50);
  const double begin = system_clock().now();
  while (system_files().status(lease).modified + 5 < static_cast<double>(system_clock().wall()) &&
         system_clock().now() < begin + 20)
    usleep(10000);
  CHECK(system_clock().now() < begin + 20);
  CHECK_FALSE(lock.lost());
  spill(lease, "taken over");
  while (!lock.lost() && system_clock().now() < begin + 40) usleep(10000);
  CHECK(lock.lost());
}

TEST_CASE("eight at once in one directory: one winner, and the losers know whom", "[checkpoint]") {
  race(system_files(), 40, 8);
  race(LocklessFiles(), 40, 8);
}

TEST_CASE("eight at once in one directory, many rounds", "[.nightly]") {
  race(system_files(), 500, 8);
  race(LocklessFiles(), 500, 8);
}

TEST_CASE("a directory that is a link, a file, another user's or read-only is refused", "[checkpoint]") {
  const TemporaryDirectory t;
  const std::string real = join_path(t.path, "real"), link = join_path(t.path, "link");
  fs::create_directory(real);
  CHECK(refusal(system_files(), real) == "");
  fs::create_symlink(real, link);
  CHECK_THAT(refusal(system_files(), link), Contains("link: it is a link"));
  CHECK_THAT(refusal(system_files(), link + "/"), Contains("it is a link"));
  CHECK(refusal(system_files(), join_path(link, "run")) == "");  // what is above is the user's own matter
  spill(join_path(t.path, "file"), "x");
  CHECK_THAT(refusal(system_files(), join_path(t.path, "file")), Contains("it is not a directory"));
  if (geteuid() == 0) {
    REQUIRE(chown(real.c_str(), 12345, 12345) == 0);
    CHECK_THAT(refusal(system_files(), real), Contains("it belongs to user 12345, this process runs as user 0"));
    REQUIRE(chown(real.c_str(), 0, 0) == 0);
  }
  // A link in the place of the lock is not followed.
  fs::remove(join_path(real, "lock"));
  fs::create_symlink(join_path(t.path, "elsewhere"), join_path(real, "lock"));
  CHECK_THAT(refusal(system_files(), real), Contains("it is a link, which is not followed"));
  CHECK_FALSE(fs::exists(join_path(t.path, "elsewhere")));
}

TEST_CASE("files are made for their owner and group, and links are not followed", "[checkpoint]") {
  const TemporaryDirectory t;
  const mode_t mask = umask(0);
  save_alone(system_files(), t.path, 1);
  umask(mask);
  for (const auto& entry : fs::recursive_directory_iterator(t.path)) {
    struct stat s {};
    REQUIRE(stat(entry.path().c_str(), &s) == 0);
    CHECK((s.st_mode & 07777) == (entry.is_directory() ? 0750u : 0640u));
  }
  const std::string target = join_path(t.path, "target"), link = join_path(t.path, "link");
  spill(target, "keep");
  fs::create_symlink(target, link);
  for (const OpenMode mode : {OpenMode::create, OpenMode::replace, OpenMode::append})
    CHECK_THROWS_AS(system_files().open(link, mode), FileError);
  CHECK_THROWS_AS(write_file_atomically(system_files(), join_path(t.path, "nowhere/x"), "y"), FileError);
  fs::create_symlink(target, join_path(t.path, "text.tmp"));
  CHECK_THROWS_AS(write_file_atomically(system_files(), join_path(t.path, "text"), "y"), FileError);
  CHECK(slurp(target) == "keep");
  // A link in the place of a checkpoint that is being written or deleted is removed, and what it points to is not.
  const std::string outside = join_path(t.path, "outside");
  fs::create_directory(outside);
  spill(join_path(outside, "file"), "keep");
  fs::create_directory_symlink(outside, join_path(t.path, "step_00000002.partial"));
  fs::create_directory_symlink(outside, join_path(t.path, "step_00000001.trash"));
  save_alone(system_files(), t.path, 2);
  CHECK(slurp(join_path(outside, "file")) == "keep");
  CHECK(load(t.path, 2) == 2);
  CHECK_FALSE(fs::is_symlink(join_path(t.path, "step_00000002")));
}
