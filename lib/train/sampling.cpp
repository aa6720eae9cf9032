#include "lib/train/sampling.h"

#include <algorithm>
#include <cmath>

#include "lib/core/errors.h"
#include "lib/core/hash.h"
#include "lib/core/rng.h"

namespace dstrain {

namespace {

void penalise(std::span<double> scores, std::span<const std::int32_t> seen, double penalty) {
  std::vector<std::int32_t> ids(seen.begin(), seen.end());
  std::sort(ids.begin(), ids.end());
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  for (const std::int32_t id : ids) {
    double& score = scores[static_cast<std::size_t>(id)];
    score = score < 0 ? score * penalty : score / penalty;
  }
}

// The candidates whose probabilities, largest first, sum to p; at least one.
void keep_top_p(std::vector<Candidate>& sorted, double p) {
  double sum = 0;
  std::size_t n = 0;
  while (n < sorted.size() && (n == 0 || sum < p)) sum += sorted[n++].probability;
  sorted.resize(n);
  for (Candidate& c : sorted) c.probability /= sum;
}

}  // namespace

std::vector<Candidate> candidates(std::span<const float> logits, std::span<const std::int32_t> seen,
                                  const SamplingOptions& options) {
  std::vector<double> scores(logits.begin(), logits.end());
  for (std::size_t i = 0; i < scores.size(); ++i)
    require(!std::isnan(scores[i]) && !(std::isinf(scores[i]) && scores[i] > 0), ExitCode::nonfinite,
            "the logit of id {} is {}", i, scores[i]);
  if (options.repetition_penalty != 1.0) penalise(scores, seen, options.repetition_penalty);
  const auto best = static_cast<std::size_t>(std::max_element(scores.begin(), scores.end()) - scores.begin());
  require(std::isfinite(scores[best]), ExitCode::nonfinite, "every logit is minus infinity");
  if (options.temperature == 0) return {{static_cast<std::int32_t>(best), 1.0}};

  std::vector<Candidate> all;
  all.reserve(scores.size());
  for (std::size_t i = 0; i < scores.size(); ++i)
    all.push_back({static_cast<std::int32_t>(i), std::exp((scores[i] - scores[best]) / options.temperature)});
  const bool top_k = options.top_k > 0 && options.top_k < static_cast<Index>(all.size());
  if (top_k || options.top_p < 1.0) {
    const auto order = [](const Candidate& a, const Candidate& b) {
      return a.probability != b.probability ? a.probability > b.probability : a.id < b.id;
    };
    const auto kept = static_cast<std::ptrdiff_t>(top_k ? options.top_k : static_cast<Index>(all.size()));
    std::partial_sort(all.begin(), all.begin() + kept, all.end(), order);
    all.resize(static_cast<std::size_t>(kept));
  }
  double sum = 0;
  for (const Candidate& c : all) sum += c.probability;
  for (Candidate& c : all) c.probability /= sum;
  if (options.top_p < 1.0) keep_top_p(all, options.top_p);
  return all;
}

std::int32_t draw(std::span<const Candidate> candidates, std::uint64_t seed, std::span<const std::int32_t> prompt,
                  Index index) {
  const std::string stream = "sampling " + hex(xxh3(std::as_bytes(prompt)));
  const auto bits = philox(seed, stream)(0, static_cast<std::uint64_t>(index));
  // 53 random bits: a vocabulary has probabilities far below the 23 of a float.
  const std::uint64_t wide = (static_cast<std::uint64_t>(bits[0]) << 32 | bits[1]) >> 11;
  double at = (static_cast<double>(wide) + 0.5) * 0x1p-53;
  for (const Candidate& c : candidates)
    if ((at -= c.probability) <= 0) return c.id;
  return candidates.back().id;
}

}  // namespace dstrain
