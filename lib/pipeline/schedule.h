#pragma once
// Schedules by name, and what turns one into a program that can be run. All pure.
//
//   generator (compute actions) -> lower (adds transfers) -> assign_slots -> violations, simulate

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "lib/pipeline/action.h"

namespace dstrain {

// One row of the table in schedule.cpp. `compute` gives the forwards and backwards of each rank, without transfers.
struct ScheduleEntry {
  const char* name;
  const char* help;
  Program (*compute)(int stages, int micro_batches);
};
std::span<const ScheduleEntry> schedules();

// A program ready to run: lowered, slots assigned, without violations. Throws Error{usage} with the known names when
// `name` is none of them, and when a count is below 1 or the program would have over 2^24 actions.
Program make_schedule(std::string_view name, int stages, int micro_batches);

// The generators.
Program gpipe(int stages, int micro_batches);
Program forward_only(int stages, int micro_batches);

// Inserts the transfers: an activation is received right before its forward and sent right after it, a gradient alike.
// A send and the receive that follows it on the same boundary are posted together: two neighbours that both send first
// would wait for ever. REQUIRES: neighbouring chunks live on different ranks.
Program lower(const Program& compute);

// Numbers the slots that hold activations of a micro-batch on a chunk: from its RECV_ACT (first chunk: forward) to its
// backward (forward only: its SEND_ACT; last chunk: forward). The lowest free slot is taken.
void assign_slots(Program& program);
// Slots that `rank` needs: one more than the largest. 0 when it computes nothing.
int slot_count(const Program& program, int rank);

// What is wrong with a lowered program, in words; empty when nothing is. Shown: every forward and backward happens
// once, on the owner of its chunk, each kind in ascending micro-batch order on a chunk, backward after forward; every
// transfer happens once, receives before and sends after their compute, before the buffer is used again (a stage has
// one output and one gradient buffer); between each pair of ranks the k-th send is what the k-th receive expects.
std::vector<std::string> violations(const Program& program);

}  // namespace dstrain
