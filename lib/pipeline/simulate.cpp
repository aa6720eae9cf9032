#include "lib/pipeline/simulate.h"

#include <algorithm>
#include <map>
#include <utility>

#include "lib/core/errors.h"
#include "lib/pipeline/schedule.h"
#include "lib/pipeline/text.h"

namespace dstrain {

namespace {

// When the k-th send and the k-th receive of one direction were posted.
struct Wire {
  std::vector<double> sends, receives;
};

struct Post {
  const Wire* wire;
  std::size_t k;
};

struct Rank {
  std::size_t next = 0;  // action
  double now = 0;
  bool posted = false;  // action `next` is an exchange whose transfers are posted
  std::vector<Post> posts;
};

}  // namespace

Simulation simulate(const Program& program, const Costs& costs) {
  const int n = program.rank_count();
  Simulation result;
  result.spans.resize(static_cast<std::size_t>(n));
  std::map<std::pair<int, int>, Wire> wires;
  std::vector<Rank> ranks(static_cast<std::size_t>(n));
  double busy = 0;

  // One step of rank r; whether it got further.
  const auto step = [&](int r) {
    Rank& rank = ranks[static_cast<std::size_t>(r)];
    const auto& actions = program.ranks[static_cast<std::size_t>(r)];
    if (rank.next == actions.size()) return false;
    const Action& a = actions[rank.next];
    double end = rank.now;
    if (a.kind != Action::Kind::exchange) {
      const double cost = a.kind == Action::Kind::forward ? costs.forward : costs.backward;
      busy += cost;
      end += cost;
    } else {
      bool moved = false;
      if (!rank.posted) {
        rank.posts.clear();
        for (const Transfer& t : a.transfers) {
          check(t.peer_chunk() >= 0 && t.peer_chunk() < program.chunks(), "{} has no chunk at the other end",
                to_text(t));
          Wire& wire = wires[t.sends() ? std::pair{r, program.peer(t)} : std::pair{program.peer(t), r}];
          auto& side = t.sends() ? wire.sends : wire.receives;
          rank.posts.push_back({&wire, side.size()});
          side.push_back(rank.now);
        }
        rank.posted = moved = true;
      }
      for (const Post& p : rank.posts) {
        if (p.k >= p.wire->sends.size() || p.k >= p.wire->receives.size()) return moved;
        end = std::max(end, std::max(p.wire->sends[p.k], p.wire->receives[p.k]) + costs.communication);
      }
      rank.posted = false;
    }
    result.spans[static_cast<std::size_t>(r)].push_back({rank.now, end});
    rank.now = end;
    ++rank.next;
    return true;
  };

  for (bool moved = true; moved;) {
    moved = false;
    for (int r = 0; r < n; ++r)
      while (step(r)) moved = true;
  }
  for (int r = 0; r < n; ++r) {
    const Rank& rank = ranks[static_cast<std::size_t>(r)];
    const auto& actions = program.ranks[static_cast<std::size_t>(r)];
    result.total = std::max(result.total, rank.now);
    result.peak_slots.push_back(slot_count(program, r));
    if (rank.next < actions.size())
      result.deadlock += format("{}rank {} waits in {} (action {} of {})", result.deadlock.empty() ? "" : "; ", r,
                                to_text(actions[rank.next]), rank.next + 1, actions.size());
  }
  if (result.total > 0) result.bubble = 1 - busy / (n * result.total);
  return result;
}

}  // namespace dstrain
