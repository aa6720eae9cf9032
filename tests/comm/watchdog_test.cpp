#include "lib/comm/watchdog.h"

#include <csignal>
#include <cstddef>
#include <cstdlib>

#include <array>
#include <atomic>
#include <memory>
#include <numeric>

#include "lib/comm/mpi_runtime.h"
#include "lib/mesh/mesh.h"
#include "tests/support/catch.h"

using namespace dstrain;

namespace {

// Ranks of one host, each with whereabouts to fill in.
struct Ranks {
  explicit Ranks(int n) {
    for (int r = 0; r < n; ++r) {
      rows.push_back(std::make_unique<Whereabouts>());
      rows.back()->process = 100 + r;
      rows.back()->step = 7;
      rows.back()->enter(PackedText("step"), 10);
      views.push_back({.rank = r, .host = "a", .here = rows.back().get()});
    }
  }
  void wait(int rank, const char* group, double stalled) {
    rows[static_cast<std::size_t>(rank)]->waits.set(PackedText(group));
    views[static_cast<std::size_t>(rank)].stalled = stalled;
  }
  std::optional<Finding> find(bool all = true) const { return find_lost(views, all, 25); }
  std::vector<std::unique_ptr<Whereabouts>> rows;
  std::vector<RankView> views;
};

// A clock that the test moves by hand.
class HandClock final : public Clock {
 public:
  double now() const override { return system_clock().now() + ahead; }
  std::int64_t wall() const override { return system_clock().wall(); }
  void sleep(double seconds) const override { system_clock().sleep(seconds); }
  std::atomic<double> ahead{0};
};

template <class Condition>
bool within(double seconds, Condition condition) {
  for (double waited = 0; waited < seconds; waited += 0.01) {
    if (condition()) return true;
    system_clock().sleep(0.01);
  }
  return condition();
}

}  // namespace

TEST_CASE("the table of ranks has the layout that is read from outside", "[watchdog]") {
  // tests/faults/cluster.py
  CHECK(sizeof(Whereabouts) == 192);
  CHECK(offsetof(Whereabouts, process) == 8);
  CHECK(offsetof(Whereabouts, step) == 24);
  CHECK(offsetof(Whereabouts, layer) == 32);
  CHECK(offsetof(Whereabouts, activity) == 48);
  CHECK(offsetof(Whereabouts, phase) == 72);
  CHECK(offsetof(Whereabouts, op) == 96);
  CHECK(offsetof(Whereabouts, waits) == 120);
  CHECK(offsetof(Whereabouts, peer) == 144);
  CHECK(offsetof(Whereabouts, ended) == 152);
  CHECK(offsetof(Whereabouts, saving) == 160);
}

TEST_CASE("a rank is described by where it is", "[watchdog]") {
  Whereabouts here;
  CHECK(describe(here) == "before the start");
  here.step = 17;
  here.enter(PackedText("step"), 1);
  here.place(3, 2, "backward");
  here.launched(PackedText("a_name_of_more_than_twenty_four_bytes"));
  {
    const Waiting waiting(&here, PackedText("replica"));
    here.saving = 16;
    CHECK(describe(here) ==
          "step 17, backward, micro-batch 2, layer 3, last op 'a_name_of_more_than_twen', waiting for replica, writing "
          "the checkpoint of step 16");
  }
  CHECK(here.waits.empty());
}

TEST_CASE("the rank to blame is found among those that wait for it", "[watchdog]") {
  SECTION("nobody is") {
    Ranks ranks(4);
    CHECK_FALSE(ranks.find());
    // All wait for rank 2, which works on, however slowly.
    for (const int r : {0, 1, 3}) ranks.wait(r, "replica", 100);
    CHECK_FALSE(ranks.find());
    ranks.views[2].stalled = 9.9;
    CHECK_FALSE(ranks.find());
  }
  SECTION("a dead one, before all others") {
    Ranks ranks(4);
    ranks.views[1].silent = 100;
    ranks.views[3].gone = true;
    CHECK(ranks.find()->lost == 3);
    CHECK(ranks.find(false)->what == "rank 3 on host a (process 103) was killed or died");
    ranks.rows[3]->ended = 0;
    CHECK(ranks.find()->lost == 1);
  }
  SECTION("a stopped one") {
    Ranks ranks(4);
    for (const int r : {0, 1, 3}) ranks.wait(r, "replica", 100);
    ranks.views[2].silent = 26;
    CHECK(ranks.find(false)->lost == 2);
    CHECK(ranks.find()->what.find("no sign of life for 26.0 s") != std::string::npos);
  }
  SECTION("one that hangs in its own work") {
    Ranks ranks(4);
    for (const int r : {0, 1, 3}) ranks.wait(r, "replica", 12);
    ranks.views[2].stalled = 10.5;
    CHECK(ranks.find(false)->lost == 2);
    CHECK(ranks.find()->what == "rank 2 on host a (process 102) makes no progress for 10.5 s (limit 10.0 s)");
    ranks.rows[2]->limit = 0;  // none at the end of a run
    CHECK_FALSE(ranks.find());
  }
  SECTION("one whose device, loader or writer hangs: known once all ranks are seen to wait") {
    Ranks ranks(3);
    ranks.wait(0, "pipeline", 30);
    ranks.wait(1, "loader", 20);
    ranks.wait(2, "replica", 30);
    CHECK(ranks.find()->lost == 1);
    CHECK_FALSE(ranks.find(false));
  }
  SECTION("all of them: a deadlock") {
    Ranks ranks(3);
    for (int r = 0; r < 3; ++r) ranks.wait(r, "pipeline", 11);
    CHECK(ranks.find()->lost == -1);
    ranks.views[1].stalled = 9;
    CHECK_FALSE(ranks.find());
  }
}

TEST_CASE("a rank that makes no progress is told, with what it did last", "[watchdog]") {
  const auto world = World::make();
  HandClock clock;
  std::string said;
  std::atomic<int> left{0};
  Watchdog watchdog(*world, clock, nullptr,
                    {.tell = [&](const Watchdog::Ending& e) { said = e.text; },
                     .leave = [&](ExitCode code) { left = static_cast<int>(code); }});
  watchdog.here().enter(PackedText("step"), 2);
  // Progress keeps it quiet, for longer than the limit in all.
  for (int i = 0; i < 250; ++i) {
    watchdog.here().launched(PackedText("matmul"));
    system_clock().sleep(0.01);
  }
  REQUIRE(left == 0);
  // So does a jump of time: the process was stopped with all its threads, and its peers' time stood still for it.
  system_clock().sleep(0.12);
  clock.ahead = 1000;
  system_clock().sleep(0.2);
  REQUIRE(left == 0);
  REQUIRE(within(5, [&] { return left != 0; }));
  CHECK(left == 11);
  CHECK_THAT(said, Catch::Matchers::Contains("makes no progress for "));
  CHECK_THAT(said, Catch::Matchers::Contains("last seen in step 0, last op 'matmul'"));
}

TEST_CASE("one signal stops, a second ends, and two at once are one", "[watchdog]") {
  const StopSignal signal;
  const auto world = World::make();
  std::atomic<int> left{0};
  Watchdog watchdog(*world, system_clock(), &signal, {.leave = [&](ExitCode code) { left = static_cast<int>(code); }});
  CHECK_FALSE(signal.received());
  std::raise(SIGUSR1);
  std::raise(SIGTERM);
  CHECK(signal.received());
  CHECK(signal.terminated());
  CHECK_FALSE(signal.again());
  system_clock().sleep(StopSignal::kSame + 0.1);
  CHECK(left == 0);
  std::raise(SIGUSR1);
  CHECK(signal.again());
  REQUIRE(within(5, [&] { return left != 0; }));
  CHECK(left == 10);
}

TEST_CASE("a rank that does not come to the start of the watchdog ends the wait of the others", "[watchdog]") {
  std::atomic<int> waited{0};
  std::atomic<bool> all_waited{false};
  std::array<std::string, 3> told;  // of each rank
  const double begin = system_clock().now();
  run_threads(3, [&](World& world) {
    if (world.rank() == 1) {  // as one that was stopped behind the start of MPI
      all_waited = within(10, [&] { return waited == 2; });
      return;
    }
    try {
      const Watchdog watchdog(world, system_clock(), nullptr, {.start = 0.3});
    } catch (const Error& e) {
      if (e.code() == ExitCode::lost) told[static_cast<std::size_t>(world.rank())] = e.what();
    }
    ++waited;
  });
  CHECK(all_waited);
  for (const std::size_t rank : {0, 2})
    CHECK_THAT(told[rank], Catch::Matchers::Contains("has come to the start within 0.3 s"));
  CHECK(system_clock().now() - begin < 5);
  // When all come, it is over with the start.
  std::atomic<int> finished{0};
  run_threads(2, [&](World& world) {
    Watchdog watchdog(world, system_clock(), nullptr, {.start = 0.3});
    system_clock().sleep(0.6);
    watchdog.finish();
    ++finished;
  });
  CHECK(finished == 2);
}

TEST_CASE("a process without a launcher is rank 0 of itself, and its parent lives", "[watchdog]") {
  CHECK_FALSE(launched_by_mpi());
  CHECK(launched_rank() == 0);
  const Launcher launcher;
  CHECK(launcher.alive());
  CHECK_THAT(launcher.to_string(), Catch::Matchers::Contains("(process "));
}

// Under mpirun, in a process of its own: MPI starts once.
TEST_CASE("notes come by themselves; ranks of a host share a table and end together in peace", "[.mpi-watch]") {
  const auto world = World::make();
  MpiRuntime* const runtime = world->runtime();
  REQUIRE(runtime != nullptr);
  runtime->listen();
  std::vector<std::byte> bytes(5000, static_cast<std::byte>(world->rank()));
  for (int r = 0; r < world->size(); ++r)
    if (r != world->rank()) runtime->send_note(r, bytes);
  std::vector<char> heard(static_cast<std::size_t>(world->size()), 0);
  heard[static_cast<std::size_t>(world->rank())] = 1;
  CHECK(within(10, [&] {
    for (const MpiRuntime::Note& note : runtime->take_notes()) {
      CHECK(note.bytes == std::vector<std::byte>(5000, static_cast<std::byte>(note.from)));
      heard[static_cast<std::size_t>(note.from)] = 1;
    }
    return std::accumulate(heard.begin(), heard.end(), 0) == world->size();
  }));
  std::atomic<int> left{0};
  Watchdog watchdog(*world, system_clock(), nullptr, {.leave = [&](ExitCode code) { left = static_cast<int>(code); }});
  watchdog.here().step = 3;
  watchdog.finish();
  CHECK(left == 0);
}
