#include "lib/pipeline/schedule.h"

#include <deque>
#include <map>
#include <random>
#include <set>

#include "lib/core/files.h"
#include "lib/pipeline/simulate.h"
#include "lib/pipeline/text.h"
#include "tests/support/catch.h"

using namespace dstrain;

namespace {

std::string golden(const std::string& name) {
  return read_file(system_files(), join_path(DSTRAIN_SOURCE_DIR, "tests/golden/" + name));
}

// Megatron's order (PipeDream-flush): warm up with forwards, then one forward and one backward in turn.
Program one_f_one_b(int stages, int micro_batches) {
  Program program{"1f1b", micro_batches, true, {}, {}};
  program.ranks.resize(static_cast<std::size_t>(stages));
  for (int s = 0; s < stages; ++s) {
    program.owner.push_back(s);
    auto& actions = program.ranks[static_cast<std::size_t>(s)];
    int f = 0, b = 0;
    while (f < std::min(stages - 1 - s, micro_batches)) actions.push_back(forward(s, f++));
    while (f < micro_batches) {
      actions.push_back(forward(s, f++));
      actions.push_back(backward(s, b++));
    }
    while (b < micro_batches) actions.push_back(backward(s, b++));
  }
  return program;
}

// What the program computes, found by running it on symbols with one output and one gradient buffer a chunk, as a stage
// has, and blocking first-in-first-out wires. "" when every backward saw what a run without pipeline shows it.
// Independent of violations() and simulate().
std::string run_on_symbols(const Program& program) {
  struct Wire {
    std::deque<std::string> messages;
    std::size_t sent = 0, posted = 0;  // a send ends when the receiver has posted as many
  };
  std::map<std::pair<int, int>, Wire> wires;
  std::map<std::pair<int, int>, std::string> inputs, saved, forward_log, backward_log;  // (chunk, micro-batch)
  std::map<int, std::string> output, gradient;
  struct State {
    std::size_t next = 0;
    bool posted = false;
    std::vector<std::pair<int, int>> awaited_wires;
    std::vector<std::size_t> awaited;
    std::vector<char> taken;
  };
  std::vector<State> states(program.ranks.size());
  std::map<int, std::vector<int>> order;
  const int last = program.chunks() - 1;
  const auto step = [&](int r) {
    State& s = states[static_cast<std::size_t>(r)];
    const auto& actions = program.ranks[static_cast<std::size_t>(r)];
    if (s.next == actions.size()) return false;
    const Action& a = actions[s.next];
    const std::pair key{a.chunk, a.micro_batch};
    if (a.kind == Action::Kind::forward) {
      const std::string in = a.chunk == 0 ? format("x{}", a.micro_batch) : inputs[key];
      inputs.erase(key);
      saved[key] = in;
      output[a.chunk] = format("f{}({})", a.chunk, in);
      forward_log[key] += output[a.chunk] + ";";
    } else if (a.kind == Action::Kind::backward) {
      const std::string dy = a.chunk == last ? "1" : gradient[a.chunk];
      gradient[a.chunk] = format("b{}({},{})", a.chunk, saved[key], dy);
      saved.erase(key);
      backward_log[key] += gradient[a.chunk] + ";";
      order[a.chunk].push_back(a.micro_batch);
    } else {
      if (!s.posted) {
        s.posted = true;
        s.awaited_wires.clear();
        s.awaited.clear();
        s.taken.assign(a.transfers.size(), 0);
        for (const Transfer& t : a.transfers) {
          if (t.peer_chunk() < 0 || t.peer_chunk() > last) throw std::runtime_error("no peer");
          const auto wire_key = t.sends() ? std::pair{r, program.peer(t)} : std::pair{program.peer(t), r};
          Wire& w = wires[wire_key];
          s.awaited_wires.push_back(wire_key);
          s.awaited.push_back(t.sends() ? w.sent++ : w.posted++);
          if (t.sends()) w.messages.push_back(t.activation() ? output[t.chunk] : gradient[t.chunk]);
        }
      }
      for (std::size_t i = 0; i < a.transfers.size(); ++i) {
        const Wire& w = wires[s.awaited_wires[i]];
        if (s.awaited[i] >= w.sent || s.awaited[i] >= w.posted) return false;
      }
      for (std::size_t i = 0; i < a.transfers.size(); ++i) {
        const Transfer& t = a.transfers[i];
        if (t.sends()) continue;
        const std::string& message = wires[s.awaited_wires[i]].messages[s.awaited[i]];
        if (t.activation()) inputs[{t.chunk, t.micro_batch}] = message;
        if (!t.activation()) gradient[t.chunk] = message;
      }
      s.posted = false;
    }
    ++s.next;
    return true;
  };
  for (bool moved = true; moved;) {
    moved = false;
    for (int r = 0; r < program.rank_count(); ++r)
      while (step(r)) moved = true;
  }
  for (std::size_t r = 0; r < states.size(); ++r)
    if (states[r].next != program.ranks[r].size()) return "deadlock";
  for (int m = 0; m < program.micro_batches; ++m) {
    std::vector<std::string> in = {format("x{}", m)};
    for (int c = 0; c <= last; ++c) {
      in.push_back(format("f{}({})", c, in.back()));
      if (forward_log[{c, m}] != in.back() + ";") return "a wrong forward";
    }
    std::string dy = "1";
    for (int c = last; program.backward && c >= 0; --c) {
      dy = format("b{}({},{})", c, in[static_cast<std::size_t>(c)], dy);
      if (backward_log[{c, m}] != dy + ";") return "a wrong backward";
    }
  }
  for (const auto& [chunk, micro_batches] : order)
    if (!std::is_sorted(micro_batches.begin(), micro_batches.end())) return "gradients add up in another order";
  return "";
}

}  // namespace

TEST_CASE("programs have the text of the golden files, and text reads back", "[pipeline]") {
  CHECK(to_text(make_schedule("gpipe", 3, 2)) == golden("schedule_gpipe_3_2.txt"));
  CHECK(to_text(make_schedule("forward_only", 2, 3)) == golden("schedule_forward_only_2_3.txt"));
  for (const auto& entry : schedules()) {
    for (const int stages : {1, 2, 5}) {
      const Program program = make_schedule(entry.name, stages, 4);
      CHECK(parse_program(to_text(program)) == program);
    }
  }
}

TEST_CASE("text that is not a program is refused with line and word", "[pipeline]") {
  const std::string header = "schedule x, 1 ranks, 1 chunks, 1 micro-batches\n";
  CHECK_NOTHROW(parse_program(header + "0: 0F0 0B0\n"));
  using Catch::Matchers::Contains;
  CHECK_THROWS_WITH(parse_program(""), Contains("empty"));
  CHECK_THROWS_WITH(parse_program("schedule x\n"), Contains("line 1"));
  CHECK_THROWS_WITH(parse_program(header), Contains("line 2: rank 0 is missing"));
  CHECK_THROWS_WITH(parse_program(header + "1: 0F0\n"), Contains("'1:' should be '0:'"));
  CHECK_THROWS_WITH(parse_program(header + "0: 0F0 7\n"), Contains("line 2: '7'"));
  CHECK_THROWS_WITH(parse_program(header + "0: 0F99999999999\n"), Contains("0F99999999999"));
  CHECK_THROWS_WITH(parse_program(header + "0: 0G0\n"), Contains("kinds are F, B"));
  CHECK_THROWS_WITH(parse_program(header + "0: 0F0+0B0\n"), Contains("joins a compute action"));
  CHECK_THROWS_WITH(parse_program(header + "0: 1F0\n"), Contains("there are 1 chunks"));
  CHECK_THROWS_WITH(parse_program(header + "0: 0SEND_ACT0\n"), Contains("nothing computes chunk 0"));
}

TEST_CASE("GPipe's bubble is (p - 1) / (m + p - 1)", "[pipeline]") {
  for (int p = 1; p <= 8; ++p) {
    for (int m = 1; m <= 32; ++m) {
      const Program program = make_schedule("gpipe", p, m);
      for (const Costs& costs : {Costs{1, 2, 0}, Costs{3, 1, 0}}) {
        const Simulation s = simulate(program, costs);
        REQUIRE(s.deadlock.empty());
        // Whole costs: the total is exact, and the bubble is one division and one subtraction away from it.
        REQUIRE(s.total == (m + p - 1) * (costs.forward + costs.backward));
        REQUIRE(std::abs(s.bubble - static_cast<double>(p - 1) / (m + p - 1)) <= 2e-16);
        for (const int slots : s.peak_slots) REQUIRE(slots == (p == 1 ? 1 : m));  // a single stage alternates
      }
    }
  }
}

TEST_CASE("forward_only keeps one slot, and 1F1B keeps as many as stages follow", "[pipeline]") {
  for (const int slots : simulate(make_schedule("forward_only", 4, 9)).peak_slots) CHECK(slots == 1);
  const Program program = lower(one_f_one_b(4, 9));
  CHECK(violations(program).empty());
  const Simulation s = simulate(program);
  CHECK(s.deadlock.empty());
  CHECK(s.total == (9 + 4 - 1) * 3);
  CHECK(s.peak_slots == std::vector<int>{4, 3, 2, 1});
  CHECK(run_on_symbols(program).empty());
}

TEST_CASE("communication is waited for once both ends have posted", "[pipeline]") {
  // Forward 1, transfer 0.5: 0F0 ends at 1, 1F0 runs from 1.5 to 2.5, its gradient arrives at 2.5 + 2 + 0.5.
  const Simulation s = simulate(make_schedule("gpipe", 2, 1), {1, 2, 0.5});
  CHECK(s.total == 7);
  CHECK(s.bubble == 1 - 6.0 / 14);
}

TEST_CASE("sends that cross are found to deadlock unless posted together", "[pipeline]") {
  const std::string header = "schedule x, 2 ranks, 2 chunks, 2 micro-batches\n";
  const std::string crossed = header +
                              "0: 0F0 0SEND_ACT0 0F1 0SEND_ACT1 0RECV_GRAD0 0B0 0RECV_GRAD1 0B1\n"
                              "1: 1RECV_ACT0 1F0 1B0 1SEND_GRAD0 1RECV_ACT1 1F1 1B1 1SEND_GRAD1\n";
  const Program program = parse_program(crossed);
  CHECK(violations(program).empty());
  CHECK(simulate(program).deadlock ==
        "rank 0 waits in 0SEND_ACT1 (action 4 of 8); rank 1 waits in 1SEND_GRAD0 (action 4 of 8)");
  CHECK(run_on_symbols(program) == "deadlock");
  const std::string joined = header +
                             "0: 0F0 0SEND_ACT0 0F1 0SEND_ACT1+0RECV_GRAD0 0B0 0RECV_GRAD1 0B1\n"
                             "1: 1RECV_ACT0 1F0 1B0 1SEND_GRAD0+1RECV_ACT1 1F1 1B1 1SEND_GRAD1\n";
  CHECK(simulate(parse_program(joined)).deadlock.empty());
  CHECK(run_on_symbols(parse_program(joined)).empty());
}

TEST_CASE("no schedule deadlocks or mismatches a transfer, for up to 16 stages and 64 micro-batches", "[pipeline]") {
  int programs = 0;
  for (const ScheduleEntry& entry : schedules())
    for (int p = 1; p <= 16; ++p)
      for (int m = 1; m <= 64; ++m) {
        const Program program = make_schedule(entry.name, p, m);  // throws when it has violations
        INFO(entry.name << " " << p << " stages, " << m << " micro-batches");
        REQUIRE(violations(program).empty());
        REQUIRE(simulate(program).deadlock.empty());
        ++programs;
      }
  CHECK(programs == static_cast<int>(schedules().size()) * 16 * 64);
}

namespace {

// Random programs, each broken in five ways.
void break_programs(int trials, unsigned seed) {
  std::mt19937 random(seed);
  const auto pick = [&](std::size_t n) { return static_cast<std::size_t>(random() % n); };
  int caught = 0, harmless = 0;
  for (int trial = 0; trial < trials; ++trial) {
    const int p = 1 + static_cast<int>(pick(6)), m = 1 + static_cast<int>(pick(8));
    const std::size_t kind = pick(3);
    const Program program = lower(kind == 0 ? gpipe(p, m) : kind == 1 ? forward_only(p, m) : one_f_one_b(p, m));
    REQUIRE(violations(program).empty());
    REQUIRE(simulate(program).deadlock.empty());
    REQUIRE(run_on_symbols(program).empty());
    for (const std::string mutation : {"drop", "swap", "duplicate", "split", "move"}) {
      Program broken = program;
      auto& actions = broken.ranks[pick(broken.ranks.size())];
      const std::size_t at = pick(actions.size());
      const auto place = actions.begin() + static_cast<std::ptrdiff_t>(at);
      if (mutation == "drop") {
        actions.erase(place);
      } else if (mutation == "swap") {
        if (actions.size() < 2) continue;
        std::swap(actions[at], actions[at + 1 < actions.size() ? at + 1 : at - 1]);
      } else if (mutation == "duplicate") {
        const Action copy = *place;
        actions.insert(actions.begin() + static_cast<std::ptrdiff_t>(pick(actions.size() + 1)), copy);
      } else if (mutation == "split") {  // transfers that belong together, one after another
        if (place->transfers.size() < 2) continue;
        Action second = *place;
        second.transfers.erase(second.transfers.begin());
        place->transfers.resize(1);
        actions.insert(place + 1, second);
      } else {
        const Action moved = *place;
        actions.erase(place);
        actions.insert(actions.begin() + static_cast<std::ptrdiff_t>(pick(actions.size() + 1)), moved);
      }
      if (broken == program) continue;
      const bool found = !violations(broken).empty() || !simulate(broken).deadlock.empty();
      if (mutation == "drop" || mutation == "duplicate") {
        INFO(mutation << "\n" << to_text(broken));
        REQUIRE(found);
      }
      // What is not caught must compute the right thing, in the right order, and end.
      if (!found) {
        INFO(mutation << "\n" << to_text(broken));
        REQUIRE(run_on_symbols(broken).empty());
      }
      ++(found ? caught : harmless);
    }
  }
  CHECK(caught > 3 * trials);
  CHECK(harmless > 0);  // some swaps of transfers change nothing
}

}  // namespace

TEST_CASE("broken programs are caught: 1000 random ones, each dropped, swapped and duplicated", "[pipeline]") {
  break_programs(1000, 7);
}

TEST_CASE("100,000 random programs, broken", "[.nightly]") { break_programs(100'000, std::random_device{}()); }

TEST_CASE("unknown names and impossible counts are refused", "[pipeline]") {
  CHECK_THROWS_WITH(make_schedule("zigzag", 2, 2), "schedule 'zigzag' is not known; there are: gpipe, forward_only");
  CHECK_THROWS_AS(make_schedule("gpipe", 0, 2), Error);
  CHECK_THROWS_AS(make_schedule("gpipe", 2, 0), Error);
  CHECK_THROWS_AS(make_schedule("gpipe", 1 << 20, 1 << 20), Error);
}

TEST_CASE("drawings", "[pipeline]") {
  const Program program = make_schedule("gpipe", 3, 2);
  const Simulation s = simulate(program);
  CHECK(timeline_text(program, s) == golden("timeline_gpipe_3_2.txt"));
  const std::string svg = timeline_svg(program, s);
  std::size_t boxes = 0;
  for (std::size_t at = svg.find("<title>"); at != svg.npos; at = svg.find("<title>", at + 1)) ++boxes;
  CHECK(boxes == 12);
  CHECK(svg.find("bubble 50.0%") != svg.npos);
}
