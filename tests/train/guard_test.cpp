// The guard's decisions, on curves made here. Prints its figures.
#include <cmath>
#include <cstdio>
#include <random>

#include "lib/train/guard.h"
#include "tests/support/catch.h"

using namespace dstrain;

namespace {

StepNumbers numbers(Index step, double loss, double norm, const StepLimits& limits) {
  return {.step = step,
          .loss = loss,
          .grad_norm = norm,
          .finite = std::isfinite(loss) && std::isfinite(norm),
          .within = loss <= limits.loss && norm <= limits.grad_norm,
          .samples = {step * 8 - 8, step * 8}};
}

Guard::Decision feed(Guard& guard, Index step, double loss, double norm) {
  const StepLimits limits = guard.limits(step);
  return guard.judge(numbers(step, loss, norm, limits), limits);
}

// Losses that fall by a power of the step, with noise that is correlated from step to step and heavier in its tails
// than a Gauss curve; norms are of a log-normal kind around a level that falls and, in the warm-up, rises.
class CleanCurve {
 public:
  explicit CleanCurve(std::uint64_t seed) : random_(seed) {}
  std::pair<double, double> next() {
    ++step_;
    const auto t = static_cast<double>(step_);
    drift_ = 0.9 * drift_ + 0.01 * gauss_(random_);
    const double level = 2 + 9 * std::pow(1 + t, -0.3);
    const double loss = level * (1 + 0.01 * drift_) + 0.03 * tails();
    const double norm = (0.4 + std::pow(1 + t / 50, -0.5)) * std::min(1.0, 0.2 + t / 100) * std::exp(0.12 * tails());
    return {loss, norm};
  }

 private:
  // Student's t with 30 degrees of freedom.
  double tails() {
    double squares = 0;
    const double z = gauss_(random_);
    for (int i = 0; i < 30; ++i) {
      const double g = gauss_(random_);
      squares += g * g;
    }
    return z / std::sqrt(squares / 30);
  }
  std::mt19937_64 random_;
  std::normal_distribution<double> gauss_;
  Index step_ = 0;
  double drift_ = 0;
};

// Noisy gradient descent on a sum of squares; the sharpest direction is stable at a learning rate of 0.6, not of 6.
class Descent {
 public:
  explicit Descent(std::uint64_t seed) : random_(seed), x_(64, 1.0) {}
  std::pair<double, double> next(double lr) {
    double loss = 1, norm = 0;
    for (std::size_t i = 0; i < x_.size(); ++i) {
      const double curvature = std::pow(100.0, -static_cast<double>(i) / 63.0);
      const double g = curvature * x_[i] + 0.05 * gauss_(random_);
      loss += 0.5 * curvature * x_[i] * x_[i];
      norm += g * g;
      x_[i] -= lr * g;
    }
    return {loss + 0.01 * gauss_(random_), std::sqrt(norm)};
  }

 private:
  std::mt19937_64 random_;
  std::normal_distribution<double> gauss_;
  std::vector<double> x_;
};

}  // namespace

TEST_CASE("a million steps of clean curves: at most one false alarm in 100,000", "[guard]") {
  Index steps = 0, alarms = 0;
  for (std::uint64_t seed = 1; seed <= 10; ++seed) {
    Guard guard({});
    CleanCurve curve(seed);
    for (Index step = 1; step <= 100000; ++step, ++steps) {
      const auto [loss, norm] = curve.next();
      alarms += feed(guard, step, loss, norm).verdict != StepVerdict::good;
    }
  }
  std::printf("guard: %lld false alarms in %lld steps of clean curves\n", static_cast<long long>(alarms),
              static_cast<long long>(steps));
  CHECK(alarms <= steps / 100000);
}

TEST_CASE("a learning rate kicked tenfold is found within three steps", "[guard]") {
  Index found = 0, late = 0, worst = 0;
  constexpr Index kRuns = 200;
  for (Index run = 0; run < kRuns; ++run) {
    GuardConfig config;
    config.on_spike = run % 2 ? "warn" : "skip";
    Guard guard(config);
    Descent descent(static_cast<std::uint64_t>(run) + 1);
    const Index kick = 150 + run;
    Index at = 0;
    for (Index step = 1; step < kick; ++step) {
      const auto [loss, norm] = descent.next(0.6);
      CHECK(feed(guard, step, loss, norm).verdict == StepVerdict::good);
    }
    for (Index step = kick; step < kick + 20 && at == 0; ++step) {
      const auto [loss, norm] = descent.next(6.0);
      if (feed(guard, step, loss, norm).verdict == StepVerdict::spike) at = step - kick + 1;
    }
    found += at > 0;
    late += at == 0 || at > 3;
    worst = std::max(worst, at);
  }
  std::printf("guard: %lld of %lld kicks found, the slowest after %lld step(s)\n", static_cast<long long>(found),
              static_cast<long long>(kRuns), static_cast<long long>(worst));
  CHECK(found == kRuns);
  CHECK(late == 0);
}

TEST_CASE("limits are those of the definition, a step late, and none at first", "[guard]") {
  Guard guard({});
  for (Index step = 1; step <= 200; ++step) {
    const StepLimits limits = guard.limits(step);
    if (step - 2 < static_cast<Index>(Guard::kLeast)) {
      CHECK(std::isinf(limits.loss));
    } else {
      // Losses rise by one a step: the last 128 up to step - 2 have this median and this median distance.
      const auto n = std::min<Index>(step - 2, static_cast<Index>(Guard::kWindow));
      const double first = static_cast<double>(step - 2 - n + 1), median = first + static_cast<double>((n - 1) / 2);
      std::vector<double> distances;
      for (Index i = 0; i < n; ++i) distances.push_back(std::fabs(first + static_cast<double>(i) - median));
      std::sort(distances.begin(), distances.end());
      const double scale = std::max(1.4826 * distances[static_cast<std::size_t>((n - 1) / 2)], 0.01 * median);
      CHECK(std::fabs(limits.loss - (median + 6 * scale)) < 1e-9);
      CHECK(std::fabs(limits.grad_norm - 2 * std::exp(6 * 0.05)) < 1e-12);
    }
    CHECK(std::isinf(guard.device_limits(step).loss));  // guard.on_spike: warn
    feed(guard, step, static_cast<double>(step), 2);
  }
}

TEST_CASE("policies: skips in a row, rollbacks, the end; what led to one is passed over", "[guard]") {
  const double nan = std::nan("");
  GuardConfig config;
  config.on_nonfinite = "skip";
  Guard guard(config);
  CHECK(feed(guard, 1, 1, 1).action == Guard::Action::none);
  for (Index step = 2; step <= 4; ++step) CHECK(feed(guard, step, nan, 1).action == Guard::Action::skip);
  CHECK(guard.state().skips == 3);
  CHECK(feed(guard, 5, 1, 1).action == Guard::Action::none);  // ends the row
  const GuardState saved = guard.state();
  for (Index step = 6; step <= 8; ++step) CHECK(feed(guard, step, 1, INFINITY).action == Guard::Action::skip);
  const auto fourth = feed(guard, 9, nan, nan);
  CHECK(fourth.action == Guard::Action::rollback);
  CHECK_THAT(fourth.why, Catch::Matchers::Contains("4 in a row, guard.max_skips is 3; back to the last checkpoint"));
  guard.roll_back_to(saved);
  CHECK(guard.state().rollbacks == 1);
  CHECK(guard.state().window == saved.window);
  // Steps 6 to 9 had samples 40 to 71.
  CHECK(guard.cursor(32, 8) == 32);
  CHECK(guard.cursor(40, 8) == 72);
  CHECK(guard.cursor(36, 8) == 72);
  CHECK(guard.cursor(72, 8) == 72);
  // A second time, then the end.
  for (Index step = 6; step <= 8; ++step) CHECK(feed(guard, step, nan, 1).action == Guard::Action::skip);
  CHECK(feed(guard, 9, nan, 1).action == Guard::Action::rollback);
  guard.roll_back_to(saved);
  for (Index step = 6; step <= 8; ++step) feed(guard, step, nan, 1);
  CHECK(feed(guard, 9, nan, 1).action == Guard::Action::abort);
  // Good steps up to the bad one count for nothing, those well past it end the count.
  Guard again(config, guard.state());
  for (Index step = 10; step < 9 + 128; ++step) feed(again, step, 1, 1);
  CHECK(again.state().rollbacks == 2);
  feed(again, 9 + 128, 1, 1);
  CHECK(again.state().rollbacks == 0);
  CHECK(again.state().all_rollbacks == 2);

  config.on_nonfinite = "abort";
  Guard strict(config);
  CHECK(feed(strict, 1, nan, 1).action == Guard::Action::abort);
  config.on_nonfinite = "rollback";
  Guard back(config);
  const StepNumbers bad_weight{.step = 1, .loss = 1, .grad_norm = 1, .finite = false, .weights_good = false};
  const auto decision = back.judge(bad_weight, {});
  CHECK(decision.action == Guard::Action::rollback);
  CHECK_THAT(decision.why, Catch::Matchers::Contains("a weight or a rank's own gradient is not finite"));
  for (const char* policy : {"warn", "skip", "rollback", "abort"}) {
    GuardConfig spikes;
    spikes.on_spike = policy;
    Guard g(spikes);
    for (Index step = 1; step <= 100; ++step) feed(g, step, 3 + 0.001 * static_cast<double>(step % 7), 1);
    const std::size_t before = g.state().window.size();
    const auto spike = feed(g, 101, 9, 1);
    CHECK(spike.verdict == StepVerdict::spike);
    CHECK_THAT(spike.why, Catch::Matchers::Contains("a spike"));
    CHECK(static_cast<int>(spike.action) == static_cast<int>(policy == std::string("warn")   ? Guard::Action::warn
                                                             : policy == std::string("skip") ? Guard::Action::skip
                                                             : policy == std::string("rollback")
                                                                 ? Guard::Action::rollback
                                                                 : Guard::Action::abort));
    // A step that was left out says nothing of the model's level.
    CHECK(g.state().window.size() == before + (policy == std::string("warn") ? 1 : 0));
  }
}

TEST_CASE("the guard's state goes through a checkpoint with its bits, and decides alike", "[guard]") {
  GuardConfig config;
  config.on_nonfinite = config.on_spike = "skip";
  Guard whole(config);
  CleanCurve curve(3);
  for (Index step = 1; step <= 400; ++step) {
    auto [loss, norm] = curve.next();
    if (step % 37 == 0) loss = std::nan("");
    if (step % 41 == 0) norm *= 100;
    Guard resumed(config, parse_guard_state(to_text(whole.state())));
    CHECK(resumed.state() == whole.state());
    const auto a = feed(whole, step, loss, norm), b = feed(resumed, step, loss, norm);
    CHECK(a.why == b.why);
    CHECK(resumed.state() == whole.state());
  }
  for (const char* bad :
       {"", "[]", "{}",
        "{\"window\":[[1,2]],\"skips\":0,\"rollbacks\":0,\"all_rollbacks\":0,\"last_bad\":0,"
        "\"suspects\":[],\"passed\":[]}",
        "{\"window\":[],\"skips\":-1,\"rollbacks\":0,\"all_rollbacks\":0,\"last_bad\":0,\"suspects\":[],"
        "\"passed\":[]}",
        "{\"window\":[],\"skips\":0,\"rollbacks\":0,\"all_rollbacks\":0,\"last_bad\":0,\"suspects\":[],"
        "\"passed\":[[5,5]]}"}) {
    CAPTURE(bad);
    CHECK_THROWS_AS(parse_guard_state(bad), Error);
  }
}

TEST_CASE("sums of ranks name the odd one", "[guard]") {
  constexpr auto kSums = static_cast<int>(kRankSums);
  const Mesh mesh({.tensor = 2, .data = 3});  // data ranks of tensor rank 0: 0, 2, 4
  std::vector<std::int64_t> sums(6 * kRankSums);
  const auto sum = [&](int rank, int which) -> std::int64_t& {
    return sums[static_cast<std::size_t>(kSums * rank + which)];
  };
  for (int r = 0; r < 6; ++r) {
    sum(r, 0) = sum(r, 1) = r;
    sum(r, 2) = r % 2;
  }
  CHECK(find_corruption(mesh, sums) == "");
  sum(2, 2) = 77;
  CHECK(find_corruption(mesh, sums) == "rank 2: its weights or moments are not those of the 2 other data ranks");
  sum(5, 1) = 77;
  CHECK_THAT(find_corruption(mesh, sums), Catch::Matchers::Contains("rank 5: a micro-batch that was run twice"));
  const Mesh two({.data = 2});
  CHECK(find_corruption(two, std::vector<std::int64_t>{0, 0, 1, 0, 0, 0, 2, 0}) ==
        "ranks 0, 1: their weights or moments differ, and no majority says which is right");
}

TEST_CASE("sums of experts are compared among ranks that hold the same", "[guard]") {
  const Mesh mesh({.data = 6, .expert = 2});  // holders of the first experts: 0, 2, 4
  std::vector<std::int64_t> sums(6 * kRankSums);
  for (std::size_t r = 0; r < 6; ++r) sums[kRankSums * r + 3] = static_cast<std::int64_t>(r % 2);
  CHECK(find_corruption(mesh, sums) == "");
  sums[kRankSums * 3 + 3] = 77;
  CHECK(find_corruption(mesh, sums) == "rank 3: its weights or moments are not those of the 2 other data ranks");
}
