#include <signal.h>
#include <sys/wait.h>

#include <chrono>
#include <cstdio>

#include "tests/checkpoint/made_up_model.h"
#include "tests/checkpoint/recorded_files.h"
#include "tests/support/catch.h"

using namespace dstrain;
using namespace dstrain::test;
using Catch::Matchers::Contains;

TEST_CASE("kill -9 at 50 random moments of a save leaves a good checkpoint", "[checkpoint]") {
  const TemporaryDirectory t;
  save_alone(system_files(), t.path, 1, 2);
  using Time = std::chrono::steady_clock;
  const auto start = Time::now();
  save_alone(system_files(), t.path, 2, 2);
  const auto window = std::chrono::duration_cast<std::chrono::microseconds>(Time::now() - start).count();
  std::mt19937 random(11);
  Index newest = 2;
  int killed = 0;
  for (int i = 0; i < 50; ++i) {
    const pid_t child = fork();
    REQUIRE(child >= 0);
    if (child == 0) {
      try {
        save_alone(system_files(), t.path, newest + 1, 2);
      } catch (...) {
        _exit(1);
      }
      _exit(0);
    }
    usleep(static_cast<useconds_t>(random() % static_cast<unsigned>(window * 5 / 4 + 1)));
    kill(child, SIGKILL);
    int status = 0;
    REQUIRE(waitpid(child, &status, 0) == child);
    killed += WIFSIGNALED(status);
    std::vector<std::string> lines;
    const Index step = load(t.path, 9, 1, &lines);
    CHECK(lines.empty());
    CHECK((step == newest || step == newest + 1));
    CHECK(broken(t.path) == 0);
    if (WIFEXITED(status)) CHECK((WEXITSTATUS(status) == 0 && step == newest + 1));
    newest = step;
  }
  CHECK(killed >= 10);
}

namespace {

// Losses of power during three saves of two ranks in a directory that is new, the last of which delete older ones.
void lose_power(int states_an_effect, unsigned seed) {
  const TemporaryDirectory t;
  DiskLog log(t.path);
  const RecordedFiles files(system_files(), log);
  const std::string directory = join_path(t.path, "run/checkpoints");
  for (Index step = 1; step <= 4; ++step) {
    run_threads(2, [&](World& w) { save_step(w, files, directory, step, 1, 1); });
    log.acknowledge(step);
  }
  std::mt19937 random(seed);
  int states = 0, lost = 0, wrong = 0, newer = 0, half = 0;
  for (std::size_t count = 0; count <= log.size(); ++count) {
    const Index acknowledged = log.acknowledged(count);
    for (int i = 0; i < states_an_effect; ++i, ++states) {
      const auto disk = log.crash(count, random);
      std::vector<std::string> lines;
      try {
        const Index found = load(directory, 2, 1, &lines, *disk);
        lost += found < acknowledged;
        newer += found > acknowledged;
        wrong += !lines.empty();  // one that has its name and is not whole
        if (!lines.empty()) WARN(lines[0]);
        half += broken(directory, *disk);  // older ones too: one that is removed loses its name first
      } catch (const std::exception& e) {
        ++wrong;
        WARN(e.what());
      }
    }
  }
  CHECK(states >= 2000);
  CHECK(lost == 0);
  CHECK(wrong == 0);
  CHECK(newer > 0);
  CHECK(half == 0);
  std::printf("proof: loss of power behind each of %zu writes and syncs, %d states: %d acknowledged lost, %d corrupt\n",
              log.size(), states, lost, wrong);
}

}  // namespace

TEST_CASE("a loss of power loses nothing that was acknowledged and leaves nothing corrupt", "[checkpoint]") {
  lose_power(10, 1);
}
TEST_CASE("losses of power, many", "[.nightly]") { lose_power(500, 2); }
