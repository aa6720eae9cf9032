#pragma once
// What the guard against bad numbers (lib/train/guard.h) carries over a resume.

#include <string>
#include <utility>
#include <vector>

#include "lib/core/shape.h"

namespace dstrain {

struct GuardState {
  struct Point {
    Index step = 0;
    double loss = 0, grad_norm = 0;
    friend bool operator==(const Point&, const Point&) = default;
  };
  std::vector<Point> window;  // of steps whose update was applied, oldest first
  Index skips = 0;            // in a row, up to the newest step
  Index rollbacks = 0;        // that count against guard.max_rollbacks
  Index all_rollbacks = 0;    // of the run
  Index last_bad = 0;         // the newest step that an update was left out of
  // Samples [first, second): of the bad steps in a row up to the newest; and those that are passed over.
  std::vector<std::pair<Index, Index>> suspects, passed;

  friend bool operator==(const GuardState&, const GuardState&) = default;
};

// A JSON object; numbers come back with their bits.
std::string to_text(const GuardState& state);
// Throws Error{checkpoint}.
GuardState parse_guard_state(const std::string& text);

}  // namespace dstrain
