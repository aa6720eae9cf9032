#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <mutex>
#include <numeric>
#include <optional>
#include <thread>

#include "lib/comm/reduce.h"
#include "tests/comm/conformance.h"
#include "tests/support/catch.h"
#include "tests/support/devices.h"

using namespace dstrain;
using namespace dstrain::test;

TEST_CASE("a world of one passes the conformance suite", "[comm]") {
  const auto world = World::make();
  REQUIRE(world->size() == 1);
  CHECK_NOTHROW(conformance(*world));
  CHECK_NOTHROW(posters_are_independent(*world));
  // By NCCL where the host has a GPU a rank, else through host memory.
  if (!tests_cuda()) return;
  CHECK_NOTHROW(conformance(*world, Device::cuda));
  std::vector<int> all(static_cast<std::size_t>(world->size()));
  std::iota(all.begin(), all.end(), 0);
  const auto group = world->group(Poster::compute, GroupKind::tensor, all);
  if (world->size() > 1)
    CHECK(std::string(group->transport()) == (gpu::count() >= world->size() ? "NCCL" : "host memory"));
}

TEST_CASE("thread ranks pass the conformance suite", "[comm]") {
  const int ranks = GENERATE(1, 2, 3, 4);
  CHECK_NOTHROW(run_threads(ranks, [](World& world) { conformance(world); }));
  CHECK_NOTHROW(run_threads(ranks, posters_are_independent));
}

TEST_CASE("thread ranks that share a GPU pass the conformance suite", "[comm]") {
  if (!tests_cuda()) return;
  for (const int ranks : {1, 2, 3})
    CHECK_NOTHROW(run_threads(ranks, [](World& world) { conformance(world, Device::cuda); }));
}

TEST_CASE("rank order decides the sum, and bf16 is rounded once", "[comm]") {
  // 1 + 2^-24 + 2^-24 is 1 from left to right; the other way round it is 1 + 2^-23.
  const float tiny = std::ldexp(1.0f, -24);
  const std::vector<float> a = {1}, b = {tiny}, c = {tiny};
  const auto bytes = [](const auto& v) { return reinterpret_cast<const std::byte*>(v.data()); };
  float out = 0;
  const std::byte* forward[] = {bytes(a), bytes(b), bytes(c)};
  const std::byte* backward[] = {bytes(b), bytes(c), bytes(a)};
  reduce_in_order(nullptr, reinterpret_cast<std::byte*>(&out), forward, 1, DType::f32, ReduceOp::sum);
  CHECK(out == 1.0f);
  reduce_in_order(nullptr, reinterpret_cast<std::byte*>(&out), backward, 1, DType::f32, ReduceOp::sum);
  CHECK(out == 1.0f + 2 * tiny);
  // 256 + 1 + 1: rounding to bf16 after each step stays at 256, rounding once gives 258.
  const std::vector<bfloat16> x = {bfloat16(256)}, y = {bfloat16(1)};
  const std::byte* halves[] = {bytes(x), bytes(y), bytes(y)};
  bfloat16 sum;
  reduce_in_order(nullptr, reinterpret_cast<std::byte*>(&sum), halves, 1, DType::bf16, ReduceOp::sum);
  CHECK(static_cast<float>(sum) == 258.0f);
  // A maximum does not lose NaN, wherever it stands.
  const std::vector<float> nan = {std::numeric_limits<float>::quiet_NaN()};
  for (const auto& order : {std::vector{&a, &nan, &b}, std::vector{&nan, &a, &b}, std::vector{&a, &b, &nan}}) {
    const std::byte* parts[] = {bytes(*order[0]), bytes(*order[1]), bytes(*order[2])};
    reduce_in_order(nullptr, reinterpret_cast<std::byte*>(&out), parts, 1, DType::f32, ReduceOp::max);
    CHECK(out != out);
  }
}

TEST_CASE("when a rank throws or leaves, its peers learn which", "[comm]") {
  std::mutex mutex;
  std::vector<std::string> heard;
  const auto waits = [&](World& world, auto leave) {
    Host host;
    const std::vector<int> all = {0, 1, 2};
    const auto group = world.group(Poster::compute, GroupKind::control, all);
    if (world.rank() == 1) {
      group->barrier(host.stream);
      return leave();
    }
    try {
      group->barrier(host.stream);  // rank 1 may be through it, and gone, while the others still wait for each other
      group->barrier(host.stream);
    } catch (const Error& e) {
      const std::scoped_lock lock(mutex);
      if (e.code() == ExitCode::lost) heard.push_back(e.what());
      throw;
    }
  };
  SECTION("throws") {
    const auto fails = [&](World& w) { waits(w, [] { fail(ExitCode::data, "bad tokens"); }); };
    CHECK_THROWS_WITH(run_threads(3, fails), "bad tokens");
    REQUIRE(heard.size() == 2);
    for (const auto& text : heard) CHECK(text == "rank 1 failed: bad tokens");
  }
  SECTION("throws: what others do without it comes to its end") {
    std::atomic<bool> thrown{false};
    std::atomic<int> ended{0};
    const auto fails = [&](World& world) {
      if (world.rank() == 2) {
        thrown = true;
        fail(ExitCode::data, "bad tokens");
      }
      Host host;
      const std::vector<int> pair = {0, 1};
      const auto group = world.group(Poster::compute, GroupKind::control, pair);
      if (world.rank() == 1) {
        while (!thrown) std::this_thread::yield();
        std::this_thread::sleep_for(std::chrono::milliseconds(100));
      }
      group->barrier(host.stream);
      ++ended;
    };
    CHECK_THROWS_WITH(run_threads(3, fails), "bad tokens");
    CHECK(ended == 2);
  }
  SECTION("returns early") {
    CHECK_THROWS_WITH(run_threads(3, [&](World& w) { waits(w, [] {}); }),
                      Catch::Matchers::Contains("rank 1 has ended"));
    CHECK(heard.size() == 2);
  }
}

TEST_CASE("interrupt ends what a rank waits for", "[comm]") {
  const auto body = [](World& world) {
    Host host;
    const std::vector<int> all = {0, 1};
    const auto group = world.group(Poster::compute, GroupKind::control, all);
    if (world.rank() == 1) {
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
      return;
    }
    std::thread watchdog([&] { world.interrupt("stop asked for"); });
    struct Join {
      std::thread& thread;
      ~Join() { thread.join(); }
    } join{watchdog};
    group->barrier(host.stream);
  };
  CHECK_THROWS_WITH(run_threads(2, body), "stop asked for");
}

TEST_CASE("mismatched sizes are our bug and named", "[comm]") {
  const auto body = [](World& world) {
    Host host;
    const std::vector<int> all = {0, 1};
    const auto group = world.group(Poster::compute, GroupKind::control, all);
    std::vector<float> x(8);
    group->broadcast(host.stream, Tensor(x.data(), DType::f32, Device::cpu, {world.rank() == 0 ? 8 : 4}), 0);
  };
  CHECK_THROWS_WITH(run_threads(2, body), Catch::Matchers::Contains("rank 0 sent 32 bytes, rank 1 expects 16"));
  const auto wrong = [](World& world) {
    Host host;
    const std::vector<int> all = {0};
    std::vector<float> x(8);
    const Tensor t(x.data(), DType::f32, Device::cpu, {8});
    world.group(Poster::compute, GroupKind::control, all)->all_gather(host.stream, t, t.slice(0, 0, 3));
  };
  CHECK_THROWS_AS(run_threads(1, wrong), Error);
}

namespace {

// Bytes that each rank sends, by group, on streams of `device`.
void traffic(World& world, const Mesh& mesh, Device device, Ledger& ledger) {
  ThreadPool pool(1);
  Stream stream(device, Device::cpu, &pool, nullptr, &ledger);
  Groups groups = make_groups(world, mesh, Poster::compute, 2);
  std::vector<float> memory(400'000);
  const Tensor big(memory.data(), DType::f32, device, {400'000}), small = big.slice(0, 0, 10);
  groups.replica->reduce_scatter(stream, big.slice(0, 0, 200'000), big);
  groups.tensor->all_reduce(stream, big);
  groups.tensor->all_reduce(stream, small);
  const Index own = groups.model->rank() * 100'000;
  groups.model->all_gather(stream, big, big.slice(0, own, own + 100'000));
  groups.control->broadcast(stream, small, 3);
  if (groups.embedding) groups.embedding->all_reduce(stream, small, ReduceOp::max);
}

}  // namespace

TEST_CASE("a dry world counts the bytes that the real one sends", "[comm]") {
  const Mesh mesh({.tensor = 2, .data = 2, .pipeline = 2});
  std::vector<Ledger> real(8);
  run_threads(8, [&](World& w) { traffic(w, mesh, Device::cpu, real[static_cast<std::size_t>(w.rank())]); });
  for (int r = 0; r < 8; ++r) {
    Ledger planned;
    const auto world = World::dry(r, 8);
    traffic(*world, mesh, Device::dry, planned);
    CHECK(planned.communication == real[static_cast<std::size_t>(r)].communication);
    CHECK(planned.communication["replica"] == 800'000);                // half of 1.6 MB
    CHECK(planned.communication["tensor"] == 800'000 + 800'000 + 40);  // two halves; and ten floats in one round
    CHECK(planned.communication["model"] == 3 * 400'000);
  }
  const auto world = World::dry(0, 2);
  const std::vector<int> all = {0, 1};
  Host host;
  CHECK_THROWS_AS(world->group(Poster::compute, GroupKind::control, all)->barrier(host.stream), Error);
}

TEST_CASE("a middle stage has no embedding group", "[comm]") {
  const auto world = World::dry(1, 3);
  const Groups groups = make_groups(*world, Mesh({.pipeline = 3}), Poster::compute);
  CHECK(groups.embedding == nullptr);
  CHECK(groups.pipeline->rank() == 1);
  CHECK(groups.pipeline->name() == "pipeline");
  CHECK(groups.kv_replica->size() == 1);
}

TEST_CASE("collectives past 2^31 bytes over threads", "[.nightly]") { CHECK_NOTHROW(run_threads(2, huge_messages)); }

// Under mpirun; DSTRAIN_MPI_RANKS says how many ranks must be there, so that the test cannot pass on one.
TEST_CASE("MPI ranks pass the conformance suite", "[.mpi]") {
  const auto world = World::make();
  REQUIRE(std::string(world->kind()) == "mpi");
  const char* ranks = std::getenv("DSTRAIN_MPI_RANKS");
  REQUIRE(ranks != nullptr);
  REQUIRE(world->size() == std::atoi(ranks));
  CHECK(world->local_size() == world->size());
  CHECK(world->local_rank() == world->rank());
  CHECK_NOTHROW(conformance(*world));
  CHECK_NOTHROW(posters_are_independent(*world));
  // By NCCL where the host has a GPU a rank, else through host memory.
  if (!tests_cuda()) return;
  CHECK_NOTHROW(conformance(*world, Device::cuda));
  std::vector<int> all(static_cast<std::size_t>(world->size()));
  std::iota(all.begin(), all.end(), 0);
  const auto group = world->group(Poster::compute, GroupKind::tensor, all);
  if (world->size() > 1)
    CHECK(std::string(group->transport()) == (gpu::count() >= world->size() ? "NCCL" : "host memory"));
}

TEST_CASE("MPI collectives past 2^31 bytes", "[.mpi-nightly]") {
  const auto world = World::make();
  REQUIRE(world->size() == 2);
  CHECK_NOTHROW(huge_messages(*world));
}

TEST_CASE("latency of a small all_reduce over MPI", "[.mpi-bench]") {
  const auto world = World::make();
  Host host;
  std::vector<int> all(static_cast<std::size_t>(world->size()));
  std::iota(all.begin(), all.end(), 0);
  const auto group = world->group(Poster::compute, GroupKind::control, all);
  for (const Index n : {1, 1000, 250'000, 4'000'000}) {
    std::vector<double> x(static_cast<std::size_t>(n));
    const Tensor t(x.data(), DType::f64, Device::cpu, {n});
    const int rounds = n > 100'000 ? 20 : 2000;
    group->all_reduce(host.stream, t);
    const auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < rounds; ++i) group->all_reduce(host.stream, t);
    const std::chrono::duration<double, std::micro> took = std::chrono::steady_clock::now() - start;
    if (world->rank() == 0)
      std::printf("all_reduce of %lld bytes: %.1f us\n", static_cast<long long>(n * 8), took.count() / rounds);
  }
}

TEST_CASE("an interrupt ends a wait in MPI, and the process leaves without its peers", "[.mpi-interrupt]") {
  const auto world = World::make();
  Host host;
  std::optional<gpu::Queue> queue;
  if (tests_cuda()) {
    world->use_gpus({});
    queue.emplace();
  }
  const Device device = queue ? Device::cuda : Device::cpu;
  Stream stream(device, device, &host.pool, nullptr, &host.ledger, queue ? &*queue : nullptr);
  const std::vector<int> all = {0, 1};
  const auto group = world->group(Poster::compute, GroupKind::control, all);
  group->barrier(stream);
  if (world->rank() == 1) std::this_thread::sleep_for(std::chrono::seconds(60));  // until the launcher ends it
  std::thread watchdog([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    world->interrupt("stop asked for");
  });
  std::string heard;
  try {
    group->barrier(stream);
  } catch (const Error& e) {
    if (e.code() == ExitCode::lost) heard = e.what();
  }
  watchdog.join();
  REQUIRE(heard == "stop asked for");
  std::printf("interrupted as asked\n");
}
