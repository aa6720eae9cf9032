#include "kernels/router.h"

#include <cmath>

#include "kernels/cpu/loops.h"

namespace dstrain {

namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

// Marks the best `top` of n values that are not closed; ties go to the lower index, NaN loses.
void choose(const float* values, const bool* open, Index n, Index top, bool* chosen) {
  std::fill(chosen, chosen + n, false);
  for (Index k = 0; k < top; ++k) {
    Index best = -1;
    for (Index i = 0; i < n; ++i) {
      if (chosen[i] || !open[i]) continue;
      if (best < 0 || values[i] > values[best] || (std::isnan(values[best]) && !std::isnan(values[i]))) best = i;
    }
    chosen[best] = true;
  }
}

// The sum of the best `count` of n values, the largest first.
float best_sum(const float* values, Index n, Index count) {
  bool open[kMostExperts], chosen[kMostExperts];
  std::fill(open, open + n, true);
  float sum = 0;
  for (Index k = 0; k < std::min(count, n); ++k) {
    choose(values, open, n, 1, chosen);
    const Index best = std::find(chosen, chosen + n, true) - chosen;
    sum += values[best];
    open[best] = false;
  }
  return sum;
}

void score_row(const RouterRule& rule, const float* logits, Index n, float* scores) {
  if (rule.scoring == RouterScores::sigmoid) {
    for (Index e = 0; e < n; ++e) scores[e] = 1.0f / (1.0f + std::exp(-logits[e]));
    return;
  }
  float most = kMinusInfinity, sum = 0;
  for (Index e = 0; e < n; ++e) most = std::max(most, logits[e]);
  for (Index e = 0; e < n; ++e) sum += scores[e] = std::exp(logits[e] - most);
  for (Index e = 0; e < n; ++e) scores[e] /= sum;
}

}  // namespace

void run(Cpu, Stream& stream, const Route& op) {
  const Index rows = op.logits.dim(0), n = op.logits.dim(1), top = op.experts.dim(1), size = n / op.rule.groups;
  const float* const bias = op.bias.defined() ? op.bias.as<float>() : nullptr;
  cpu::parallel_rows(stream, rows, n * (top + op.rule.groups), [&](Index r) {
    float* const scores = op.scores.as<float>() + r * n;
    score_row(op.rule, op.logits.as<float>() + r * n, n, scores);
    float values[kMostExperts], groups[kMostExperts];
    bool open[kMostExperts], chosen[kMostExperts];
    for (Index e = 0; e < n; ++e) values[e] = scores[e] + (bias ? bias[e] : 0.0f);
    std::fill(open, open + n, true);
    if (op.rule.top_groups < op.rule.groups) {
      for (Index g = 0; g < op.rule.groups; ++g) groups[g] = best_sum(values + g * size, size, op.rule.group_best);
      choose(groups, open, op.rule.groups, op.rule.top_groups, chosen);
      for (Index e = n; e-- > 0;) open[e] = chosen[e / size];
    }
    choose(values, open, n, top, chosen);
    std::int32_t* const experts = op.experts.as<std::int32_t>() + r * top;
    float* const weights = op.weights.as<float>() + r * top;
    float sum = 0;
    for (Index e = 0, k = 0; e < n; ++e) {
      if (!chosen[e]) continue;
      experts[k] = static_cast<std::int32_t>(e);
      sum += weights[k++] = scores[e];
    }
    for (Index k = 0; k < top; ++k)
      weights[k] = (op.rule.normalize ? weights[k] / (sum + 1e-20f) : weights[k]) * op.rule.scale;
  });
}

void run(Cpu, Stream& stream, const RouteGradient& op) {
  const Index rows = op.scores.dim(0), n = op.scores.dim(1), top = op.experts.dim(1);
  const Index length = op.balance.defined() ? rows / op.balance.dim(0) : 0;
  cpu::parallel_rows(stream, rows, 2 * n, [&](Index r) {
    const float* const scores = op.scores.as<float>() + r * n;
    const float* const dweights = op.dweights.as<float>() + r * top;
    const std::int32_t* const experts = op.experts.as<std::int32_t>() + r * top;
    float* const dscores = op.dlogits.as<float>() + r * n;
    std::fill(dscores, dscores + n, 0.0f);
    if (op.balance.defined()) {
      const float* const f = op.balance.as<float>() + r / length * n;
      const float c = op.coefficient;
      float sum = 0, dot = 0;
      for (Index e = 0; e < n; ++e) sum += scores[e], dot += f[e] * scores[e];
      for (Index e = 0; e < n; ++e) dscores[e] = c * (f[e] - dot / sum) / sum;
    }
    float sum = 0, dot = 0;
    for (Index k = 0; k < top; ++k) sum += scores[experts[k]], dot += dweights[k] * scores[experts[k]];
    sum += 1e-20f;
    for (Index k = 0; k < top; ++k)
      dscores[experts[k]] += op.rule.scale * (op.rule.normalize ? (dweights[k] - dot / sum) / sum : dweights[k]);
    if (op.rule.scoring == RouterScores::sigmoid) {
      for (Index e = 0; e < n; ++e) dscores[e] *= scores[e] * (1.0f - scores[e]);
    } else {
      float all = 0;
      for (Index e = 0; e < n; ++e) all += dscores[e] * scores[e];
      for (Index e = 0; e < n; ++e) dscores[e] = scores[e] * (dscores[e] - all);
    }
  });
}

void run(Cpu, Stream&, const ExpertOrder& op) {
  const Index n = op.experts.numel(), top = op.experts.dim(1), all = op.groups(), room = op.choice_at.dim(0);
  const std::int32_t* const experts = op.experts.as<std::int32_t>();
  std::int32_t* const offsets = op.offsets.as<std::int32_t>();
  const auto group_of = [&](Index c) {
    const Index from = experts[c] - op.first;
    return from < 0 || from >= all * op.width ? Index{-1} : from / op.width;
  };
  const auto place_of = [&](Index c) {
    const Index group = group_of(c);
    return op.distinct && c % top > 0 && group_of(c - 1) == group ? Index{-1} : group;
  };
  std::fill(offsets, offsets + all + 1, 0);
  for (Index c = 0; c < n; ++c)
    if (const Index g = place_of(c); g >= 0) ++offsets[g + 1];
  for (Index g = 0; g < all; ++g) offsets[g + 1] += offsets[g];
  check(offsets[all] <= room, "expert_order: {} choices in {} places", offsets[all], room);
  std::int32_t next[kMostExperts];
  std::copy_n(offsets, all, next);
  for (Index c = 0; c < n; ++c) {
    const Index g = place_of(c);
    const std::int32_t at = g < 0 ? -1 : next[g]++;
    op.place.as<std::int32_t>()[c] = at;
    if (at < 0) continue;
    op.choice_at.as<std::int32_t>()[at] = static_cast<std::int32_t>(c);
    op.row_at.as<std::int32_t>()[at] = static_cast<std::int32_t>(c / top);
  }
}

void run(Cpu, Stream&, const ExpertCounts& op) {
  const std::int32_t* const offsets = op.offsets.as<std::int32_t>();
  float* const counts = op.counts.as<float>();
  for (Index e = 0; e < op.counts.dim(0); ++e) {
    const float n = static_cast<float>(offsets[e + 1] - offsets[e]);
    counts[e] = op.write == Write::accumulate ? counts[e] + n : n;
  }
}

void run(Cpu, Stream& stream, const SequenceLoad& op) {
  const Index n = op.scores.dim(1), sequences = op.load.dim(0), length = op.scores.dim(0) / sequences;
  stream.pool().parallel_for(sequences, [&](Index s) {
    Index counts[kMostExperts] = {};
    bool open[kMostExperts], chosen[kMostExperts];
    std::fill(open, open + n, true);
    for (Index r = s * length; r < (s + 1) * length; ++r) {
      choose(op.scores.as<float>() + r * n, open, n, op.top, chosen);
      for (Index e = 0; e < n; ++e) counts[e] += chosen[e] ? 1 : 0;
    }
    const float factor = static_cast<float>(n) / static_cast<float>(op.top * length);
    for (Index e = 0; e < n; ++e) op.load.as<float>()[s * n + e] = factor * static_cast<float>(counts[e]);
  });
}

void run(Cpu, Stream&, const BalanceUpdate& op) {
  if (!std::isfinite(op.scalars.as<float>()[1])) return;
  const Index n = op.bias.dim(0);
  const float* const counts = op.counts.as<float>();
  double sum = 0;
  for (Index e = 0; e < n; ++e) sum += counts[e];
  const double mean = sum / static_cast<double>(n);
  for (Index e = 0; e < n; ++e)
    op.bias.as<float>()[e] += counts[e] < mean ? op.rate : counts[e] > mean ? -op.rate : 0.0f;
}

}  // namespace dstrain
