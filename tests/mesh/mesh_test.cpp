#include "lib/mesh/mesh.h"

#include <algorithm>
#include <set>

#include "tests/support/catch.h"

using namespace dstrain;
using Ranks = std::vector<int>;

TEST_CASE("tensor is innermost, then context, data and pipeline", "[mesh]") {
  const Mesh mesh({.tensor = 2, .context = 2, .data = 3, .pipeline = 2});
  REQUIRE(mesh.ranks() == 24);
  CHECK(mesh.coordinates(0) == Coordinates{0, 0, 0, 0});
  CHECK(mesh.coordinates(1) == Coordinates{1, 0, 0, 0});
  CHECK(mesh.coordinates(2) == Coordinates{0, 1, 0, 0});
  CHECK(mesh.coordinates(4) == Coordinates{0, 0, 1, 0});
  CHECK(mesh.coordinates(12) == Coordinates{0, 0, 0, 1});
  CHECK(mesh.coordinates(23) == Coordinates{1, 1, 2, 1});
  for (int r = 0; r < 24; ++r) CHECK(mesh.rank_of(mesh.coordinates(r)) == r);
}

TEST_CASE("groups of tensor 2, data 2, pipeline 3", "[mesh]") {
  const Mesh mesh({.tensor = 2, .data = 2, .pipeline = 3});
  CHECK(mesh.members(GroupKind::tensor, 5) == Ranks{4, 5});
  CHECK(mesh.members(GroupKind::context, 5) == Ranks{5});
  CHECK(mesh.members(GroupKind::pipeline, 5) == Ranks{1, 5, 9});
  CHECK(mesh.members(GroupKind::replica, 5) == Ranks{5, 7});
  CHECK(mesh.members(GroupKind::embedding, 1) == Ranks{1, 9});
  CHECK(mesh.members(GroupKind::embedding, 9) == Ranks{1, 9});
  CHECK(mesh.members(GroupKind::embedding, 5).empty());
  CHECK(mesh.members(GroupKind::model, 7) == Ranks{2, 3, 6, 7, 10, 11});
  CHECK(mesh.members(GroupKind::control, 3) == Ranks{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11});
}

TEST_CASE("groups of context 2, data 4, expert 2", "[mesh]") {
  const Mesh mesh({.context = 2, .data = 4, .expert = 2});  // rank = context + 2 * data
  CHECK(mesh.members(GroupKind::context, 5) == Ranks{4, 5});
  CHECK(mesh.members(GroupKind::replica, 5) == Ranks{0, 1, 2, 3, 4, 5, 6, 7});
  CHECK(mesh.members(GroupKind::expert, 5) == Ranks{5, 7});                // data 2, 3 at context 1
  CHECK(mesh.members(GroupKind::expert_replica, 5) == Ranks{0, 1, 4, 5});  // data 0, 2 at any context
  CHECK(mesh.members(GroupKind::expert_replica, 2) == Ranks{2, 3, 6, 7});
  CHECK(mesh.members(GroupKind::embedding, 5) == Ranks{5});  // one stage is first and last
}

TEST_CASE("tensor ranks share a key-value head when there are fewer heads than ranks", "[mesh]") {
  const Mesh mesh({.tensor = 4, .data = 2});
  CHECK(mesh.kv_replica(6, 8) == Ranks{6});
  CHECK(mesh.kv_replica(6, 4) == Ranks{6});
  CHECK(mesh.kv_replica(6, 2) == Ranks{6, 7});
  CHECK(mesh.kv_replica(5, 2) == Ranks{4, 5});
  CHECK(mesh.kv_replica(2, 1) == Ranks{0, 1, 2, 3});
  CHECK_THROWS_AS(mesh.kv_replica(0, 3), Error);
  CHECK_THROWS_AS(mesh.members(GroupKind::kv_replica, 0), Error);
}

TEST_CASE("the groups of a kind partition the ranks, and all members see one list", "[mesh]") {
  const Mesh mesh({.tensor = 3, .context = 2, .data = 4, .pipeline = 3, .expert = 2});
  for (int k = 0; k < kGroupKinds; ++k) {
    const auto kind = static_cast<GroupKind>(k);
    if (kind == GroupKind::kv_replica) continue;
    INFO(name_of(kind));
    for (int r = 0; r < mesh.ranks(); ++r) {
      const Ranks group = mesh.members(kind, r);
      if (group.empty()) {
        CHECK(kind == GroupKind::embedding);
        continue;
      }
      CHECK(std::is_sorted(group.begin(), group.end()));
      CHECK(std::count(group.begin(), group.end(), r) == 1);
      for (const int other : group) CHECK(mesh.members(kind, other) == group);
    }
  }
}

TEST_CASE("impossible sizes are refused with their values", "[mesh]") {
  CHECK_THROWS_WITH(Mesh({.data = 4, .expert = 3}), "parallel.expert: 3 does not divide parallel.data: 4");
  CHECK_THROWS_AS(Mesh({.tensor = 0}), Error);
  CHECK_THROWS_AS(Mesh({.tensor = 1 << 20, .data = 1 << 20}), Error);
  CHECK_THROWS_AS(Mesh({.tensor = 2}).coordinates(2), Error);
}
