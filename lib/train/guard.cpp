#include "lib/train/guard.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <vector>

#include "lib/core/errors.h"

namespace dstrain {

namespace {

// The smaller of the two in the middle, of an even number.
double median(std::vector<double>& values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>((values.size() - 1) / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

// `floor` is the least deviation.
double limit_of(std::vector<double> values, double z, double floor(double centre)) {
  constexpr double kGauss = 1.4826;  // standard deviations in a median distance
  const double centre = median(values);
  for (double& v : values) v = std::fabs(v - centre);
  return centre + z * std::max(kGauss * median(values), floor(centre));
}

Guard::Action action_of(const std::string& policy) {
  return policy == "warn"       ? Guard::Action::warn
         : policy == "skip"     ? Guard::Action::skip
         : policy == "rollback" ? Guard::Action::rollback
                                : Guard::Action::abort;
}

}  // namespace

StepLimits Guard::limits(Index step) const {
  // The window may hold one step too many: the one before, which a GPU does not know yet.
  const auto end = std::find_if(state_.window.begin(), state_.window.end(),
                                [&](const GuardState::Point& p) { return p.step > step - 2; });
  const auto known = static_cast<std::size_t>(end - state_.window.begin());
  if (known < kLeast) return {};
  std::vector<double> losses, norms;
  for (auto p = end - static_cast<std::ptrdiff_t>(std::min(known, kWindow)); p != end; ++p) {
    losses.push_back(p->loss);
    norms.push_back(std::log(std::max(p->grad_norm, std::numeric_limits<double>::min())));
  }
  return {limit_of(std::move(losses), config_.spike_z, [](double centre) { return kLossFloor * std::fabs(centre); }),
          std::exp(limit_of(std::move(norms), config_.spike_z, [](double) { return kNormFloor; }))};
}

StepLimits Guard::device_limits(Index step) const { return config_.on_spike == "warn" ? StepLimits{} : limits(step); }

Guard::Decision Guard::judge(const StepNumbers& n, const StepLimits& limits) {
  Decision d;
  const bool beyond =
      config_.on_spike == "warn" ? !(n.loss <= limits.loss && n.grad_norm <= limits.grad_norm) : !n.within;
  d.verdict = !n.finite || !n.weights_good ? StepVerdict::nonfinite : beyond ? StepVerdict::spike : StepVerdict::good;
  const bool nonfinite = d.verdict == StepVerdict::nonfinite;
  if (d.verdict != StepVerdict::good) {
    d.action = action_of(nonfinite ? config_.on_nonfinite : config_.on_spike);
    if (!n.weights_good)
      d.why = format("step {}: a weight or a rank's own gradient is not finite (loss {}, gradient norm {})", n.step,
                     n.loss, n.grad_norm);
    else if (nonfinite)
      d.why = format("step {}: loss {}, gradient norm {}: not finite", n.step, n.loss, n.grad_norm);
    else
      d.why = format("step {}: loss {} (limit {:.5g}), gradient norm {} (limit {:.5g}): a spike", n.step, n.loss,
                     limits.loss, n.grad_norm, limits.grad_norm);
  }
  if (d.action == Action::none || d.action == Action::warn) {
    state_.skips = 0;
    state_.suspects.clear();
    state_.window.push_back({n.step, n.loss, n.grad_norm});
    if (state_.window.size() > kWindow + 1) state_.window.erase(state_.window.begin());
    if (n.step >= state_.last_bad + static_cast<Index>(kWindow)) state_.rollbacks = 0;
    if (d.action == Action::warn) d.why += "; guard.on_spike is warn";
    return d;
  }

  const std::string key = nonfinite ? "guard.on_nonfinite" : "guard.on_spike";
  state_.suspects.push_back(n.samples);
  state_.last_bad = std::max(state_.last_bad, n.step);
  if (d.action == Action::abort) {
    d.why += format(", and {} is abort", key);
    return d;
  }
  if (d.action == Action::skip) {
    ++state_.skips;
    d.why += format("; update skipped, {} in a row", state_.skips);
    if (state_.skips <= config_.max_skips) return d;
    d.action = Action::rollback;
    d.why += format(", guard.max_skips is {}", config_.max_skips);
  }
  if (state_.rollbacks >= config_.max_rollbacks) {
    d.action = Action::abort;
    d.why += format("; after {} rollback(s), guard.max_rollbacks, the run ends", state_.rollbacks);
  } else {
    d.why += "; back to the last checkpoint";
  }
  return d;
}

void Guard::roll_back_to(const GuardState& state) {
  GuardState next = state;
  next.skips = 0;
  next.suspects.clear();
  next.passed = state_.passed;
  next.passed.insert(next.passed.end(), state_.suspects.begin(), state_.suspects.end());
  std::sort(next.passed.begin(), next.passed.end());
  next.rollbacks = state_.rollbacks + 1;
  next.all_rollbacks = state_.all_rollbacks + 1;
  next.last_bad = state_.last_bad;
  state_ = std::move(next);
}

Index Guard::cursor(Index cursor, Index samples) const {
  for (const auto& [begin, end] : state_.passed)
    if (begin < cursor + samples && cursor < end) cursor = end;
  return cursor;
}

std::string find_corruption(const Mesh& mesh, std::span<const std::int64_t> sums) {
  std::string found;
  const auto add = [&](const std::string& line) { found += (found.empty() ? "" : "; ") + line; };
  const auto sum = [&](int rank, std::size_t which) {
    return sums[kRankSums * static_cast<std::size_t>(rank) + which];
  };
  for (int r = 0; r < mesh.ranks(); ++r)
    if (sum(r, 0) != sum(r, 1))
      add(format("rank {}: a micro-batch that was run twice gave other gradients the second time", r));
  const auto compare = [&](GroupKind kind, std::size_t which) {
    for (int r = 0; r < mesh.ranks(); ++r) {
      const std::vector<int> replicas = mesh.members(kind, r);
      if (replicas.empty() || replicas.front() != r) continue;
      std::map<std::int64_t, std::vector<int>> holders;
      for (const int m : replicas) holders[sum(m, which)].push_back(m);
      if (holders.size() == 1) continue;
      std::size_t most = 0;
      for (const auto& [value, ranks] : holders) most = std::max(most, ranks.size());
      std::string odd;
      for (const auto& [value, ranks] : holders)
        for (const int m : ranks)
          if (2 * most <= replicas.size() || ranks.size() != most) odd += format("{}{}", odd.empty() ? "" : ", ", m);
      add(2 * most > replicas.size()
              ? format("rank {}: its weights or moments are not those of the {} other data ranks", odd, most)
              : format("ranks {}: their weights or moments differ, and no majority says which is right", odd));
    }
  };
  compare(GroupKind::replica, 2);
  compare(GroupKind::expert_replica, 3);
  return found;
}

}  // namespace dstrain
