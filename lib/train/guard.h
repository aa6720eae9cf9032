#pragma once
// Guard: which step results are bad, and what is to be done. Pure: the same results give the same decisions on every
// rank, and its state is part of a checkpoint, so that a resumed run decides as the unbroken one.
//
// A loss or gradient norm is a spike when its robust z-score over the last kWindow applied steps is above
// guard.spike_z: (x - median) / scale, where scale is 1.4826 times the median distance from the median, at least
// kLossFloor of the median. Norms are compared by their logarithms, with a scale of at least kNormFloor. Limits of step
// s come from steps up to s - 2, whether or not results are known a step late, so that a GPU decides as a CPU. No
// limits before kLeast steps.

#include <limits>
#include <span>
#include <string>
#include <utility>

#include "lib/checkpoint/guard_state.h"
#include "lib/config/config.h"
#include "lib/mesh/mesh.h"

namespace dstrain {

// The largest loss and gradient norm that are no spike.
struct StepLimits {
  double loss = std::numeric_limits<double>::infinity();
  double grad_norm = std::numeric_limits<double>::infinity();
};

enum class StepVerdict : unsigned char { good, spike, nonfinite };

struct StepNumbers {
  Index step = 0;
  double loss = 0, grad_norm = 0;
  bool finite = true;  // loss and norm
  bool weights_good = true;
  bool within = true;               // the device's limits
  std::pair<Index, Index> samples;  // of the step: [first, second)
};

class Guard {
 public:
  static constexpr std::size_t kWindow = 128, kLeast = 64;
  static constexpr double kLossFloor = 0.01, kNormFloor = 0.05;

  enum class Action : unsigned char { none, warn, skip, rollback, abort };
  struct Decision {
    StepVerdict verdict = StepVerdict::good;
    Action action = Action::none;
    std::string why;  // what was found and what follows; "" when good
  };

  explicit Guard(const GuardConfig& config, GuardState state = {}) : config_(config), state_(std::move(state)) {}

  // What the device must hold step `step` against, to leave an update out; infinite when spikes are let through.
  StepLimits device_limits(Index step) const;
  // Of step `step`, whatever the policy.
  StepLimits limits(Index step) const;
  // Steps are judged in order, each once. `limits` are those that held when the step was enqueued.
  Decision judge(const StepNumbers& numbers, const StepLimits& limits);
  // Goes on from the state of a checkpoint, or of the start, after Action::rollback: what led to it is kept.
  void roll_back_to(const GuardState& state);
  // The first sample of a step of `samples` that would start at `cursor`: behind what is passed over.
  Index cursor(Index cursor, Index samples) const;

  const GuardState& state() const { return state_; }

 private:
  GuardConfig config_;
  GuardState state_;
};

constexpr std::size_t kRankSums = 4;  // of a rank in StepResult::sums
// What StepResult::sums say of the ranks of the mesh: whose micro-batch gave other bits the second time, whose state is
// not that of its data ranks. "" when all agree. Of two data ranks that differ neither can be told to be right.
std::string find_corruption(const Mesh& mesh, std::span<const std::int64_t> sums);

}  // namespace dstrain
