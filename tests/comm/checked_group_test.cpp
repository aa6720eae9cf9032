#include "lib/comm/checked_group.h"

#include <mutex>
#include <set>
#include <vector>

#include "tests/comm/conformance.h"
#include "tests/support/catch.h"

using namespace dstrain;
using namespace dstrain::test;

namespace {

// What the members of a checked group of three throw when each does its own thing.
std::set<std::string> complaints(const std::function<void(ProcessGroup&, Stream&, int)>& body) {
  std::set<std::string> said;
  std::mutex mutex;
  const auto note = [&](const Error& e) {
    const std::scoped_lock lock(mutex);
    if (e.code() == ExitCode::bug) said.insert(e.what());
  };
  try {
    run_threads(3, [&](World& world) {
      world.check_collectives();
      Host host;
      const std::vector<int> all = {0, 1, 2};
      const auto group = world.group(Poster::compute, GroupKind::replica, all);
      try {
        body(*group, host.stream, world.rank());
      } catch (const Error& e) {
        note(e);
        throw;
      }
    });
  } catch (const Error& e) {
    note(e);
  }
  return said;
}

Tensor of(std::vector<float>& values) {
  return Tensor(values.data(), DType::f32, Device::cpu, {static_cast<Index>(values.size())});
}

void require_named(const std::set<std::string>& said, const std::string& one, const std::string& other) {
  REQUIRE_FALSE(said.empty());
  for (const std::string& text : said) {
    INFO(text);
    CHECK(text.find("group replica") != std::string::npos);
    CHECK(text.find(one) != std::string::npos);
    CHECK(text.find(other) != std::string::npos);
  }
}

}  // namespace

TEST_CASE("checked groups pass the conformance suite", "[comm]") {
  const int ranks = GENERATE(1, 2, 3, 4);
  CHECK_NOTHROW(run_threads(ranks, [](World& world) {
    world.check_collectives();
    conformance(world);
  }));
}

TEST_CASE("members that do different things are told both, not left to hang", "[comm]") {
  SECTION("another operation") {
    require_named(complaints([](ProcessGroup& group, Stream& stream, int rank) {
                    std::vector<float> x(4);
                    group.all_reduce(stream, of(x));
                    rank == 2 ? group.broadcast(stream, of(x), 0) : group.all_reduce(stream, of(x));
                  }),
                  "call 2: all_reduce of 16 bytes", "call 2: broadcast of 16 bytes");
  }
  SECTION("another size") {
    require_named(complaints([](ProcessGroup& group, Stream& stream, int rank) {
                    std::vector<float> x(rank == 1 ? 5 : 4);
                    group.all_reduce(stream, of(x));
                  }),
                  "of 16 bytes", "of 20 bytes");
  }
  SECTION("another type of the same size") {
    require_named(complaints([](ProcessGroup& group, Stream& stream, int rank) {
                    std::vector<float> x(4);
                    Tensor t = of(x);
                    if (rank == 1) t.dtype = DType::i32;
                    group.all_reduce(stream, t);
                  }),
                  "bytes of f32", "bytes of i32");
  }
  SECTION("one call less") {
    require_named(complaints([](ProcessGroup& group, Stream& stream, int rank) {
                    std::vector<float> x(4);
                    if (rank != 0) group.barrier(stream);
                    group.all_reduce(stream, of(x));
                    group.barrier(stream);
                  }),
                  "call 1: all_reduce", "call 1: barrier");
  }
  SECTION("a transfer of another size") {
    require_named(complaints([](ProcessGroup& group, Stream& stream, int rank) {
                    std::vector<float> x(4), y(rank == 1 ? 4 : 3);
                    const Send send{of(x), 1};
                    const Receive receive{of(y), 0};
                    if (rank == 0) group.exchange(stream, {&send, 1}, {});
                    if (rank == 1) group.exchange(stream, {}, {&receive, 1});
                    if (rank == 0) group.exchange(stream, {&send, 1}, {});
                    if (rank == 1) {
                      const Receive short_one{of(y).slice(0, 0, 2), 0};
                      group.exchange(stream, {}, {&short_one, 1});
                    }
                  }),
                  "call 2: exchange of 16 bytes", "call 2: exchange of 8 bytes");
  }
}
