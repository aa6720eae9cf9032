#include <algorithm>
#include <map>
#include <utility>

#include "lib/core/errors.h"
#include "lib/pipeline/schedule.h"

namespace dstrain {

namespace {

// A send and a receive over one boundary between chunks, in opposite directions.
bool posted_together(const Transfer& first, const Transfer& second) {
  return first.sends() && !second.sends() && first.chunk == second.chunk && first.peer_chunk() == second.peer_chunk();
}

}  // namespace

Program lower(const Program& compute) {
  Program program = compute;
  for (auto& actions : program.ranks) {
    std::vector<Action> lowered;
    const auto transfer = [&](Transfer::Kind kind, int chunk, int micro_batch) {
      const Transfer t{kind, chunk, micro_batch};
      check(program.peer(t) != program.owner[static_cast<std::size_t>(chunk)], "chunks {} and {} live on rank {}",
            chunk, t.peer_chunk(), program.peer(t));
      if (!lowered.empty() && lowered.back().kind == Action::Kind::exchange && lowered.back().transfers.size() == 1 &&
          posted_together(lowered.back().transfers[0], t)) {
        lowered.back().transfers.push_back(t);
        return;
      }
      lowered.push_back({Action::Kind::exchange, 0, 0, 0, {t}});
    };
    for (const Action& a : actions) {
      check(a.kind != Action::Kind::exchange, "program '{}' is lowered already", program.name);
      const bool first = a.chunk == 0, last = a.chunk == program.chunks() - 1;
      const bool is_forward = a.kind == Action::Kind::forward;
      if (is_forward && !first) transfer(Transfer::Kind::recv_act, a.chunk, a.micro_batch);
      if (!is_forward && !last) transfer(Transfer::Kind::recv_grad, a.chunk, a.micro_batch);
      lowered.push_back(a);
      if (is_forward && !last) transfer(Transfer::Kind::send_act, a.chunk, a.micro_batch);
      if (!is_forward && !first) transfer(Transfer::Kind::send_grad, a.chunk, a.micro_batch);
    }
    actions = std::move(lowered);
  }
  assign_slots(program);
  return program;
}

void assign_slots(Program& program) {
  const int last = program.chunks() - 1;
  for (auto& actions : program.ranks) {
    std::map<std::pair<int, int>, int> live;  // (chunk, micro-batch) -> slot
    std::vector<char> used;
    const auto hold = [&](int chunk, int micro_batch) {
      const auto [at, fresh] = live.try_emplace({chunk, micro_batch}, 0);
      if (fresh) {
        const auto free = std::find(used.begin(), used.end(), 0);
        at->second = static_cast<int>(free - used.begin());
        if (free == used.end()) used.push_back(0);
        used[static_cast<std::size_t>(at->second)] = 1;
      }
      return at->second;
    };
    const auto release = [&](int chunk, int micro_batch) {
      const auto at = live.find({chunk, micro_batch});
      if (at == live.end()) return;
      used[static_cast<std::size_t>(at->second)] = 0;
      live.erase(at);
    };
    for (Action& a : actions) {
      if (a.kind == Action::Kind::exchange) {
        for (Transfer& t : a.transfers)
          if (t.kind == Transfer::Kind::recv_act) t.slot = hold(t.chunk, t.micro_batch);
        if (program.backward) continue;
        for (const Transfer& t : a.transfers)
          if (t.kind == Transfer::Kind::send_act) release(t.chunk, t.micro_batch);
        continue;
      }
      a.slot = hold(a.chunk, a.micro_batch);
      if (a.kind == Action::Kind::backward || (!program.backward && a.chunk == last)) release(a.chunk, a.micro_batch);
    }
  }
}

int slot_count(const Program& program, int rank) {
  int count = 0;
  for (const Action& a : program.ranks[static_cast<std::size_t>(rank)]) {
    if (a.kind != Action::Kind::exchange) count = std::max(count, a.slot + 1);
    for (const Transfer& t : a.transfers)
      if (t.kind == Transfer::Kind::recv_act) count = std::max(count, t.slot + 1);
  }
  return count;
}

}  // namespace dstrain
