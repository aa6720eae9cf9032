#pragma once
// Runs a lowered program on paper.

#include <string>
#include <vector>

#include "lib/pipeline/action.h"

namespace dstrain {

// Time units. A transfer takes `communication` once both ends have posted it.
struct Costs {
  double forward = 1;
  double backward = 2;
  double communication = 0;
};

struct Simulation {
  struct Span {
    double begin, end;
  };
  std::vector<std::vector<Span>> spans;  // rank -> one span an action that finished
  double total = 0;                      // when the last action ends
  double bubble = 0;                     // 1 - compute time / (ranks * total)
  std::vector<int> peak_slots;           // rank -> activation slots
  std::string deadlock;                  // who waits for what; empty when the program ends
};

// Blocking rendezvous: an exchange ends when all its transfers have; a transfer starts when both ends have posted it;
// the k-th send from a to b meets the k-th receive at b from a.
Simulation simulate(const Program& program, const Costs& costs = {});

// Drawings of a simulation. Text: a row a rank, a column a time unit (costs must be whole), forwards as the micro-batch
// number modulo 36 in base 36, backwards as the number filled up with '<', idle time as '.'.
std::string timeline_text(const Program& program, const Simulation& simulation);
std::string timeline_svg(const Program& program, const Simulation& simulation);

}  // namespace dstrain
