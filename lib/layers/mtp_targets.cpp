#include "lib/layers/mtp_targets.h"

#include <algorithm>

namespace dstrain {

void fill_mtp(const Batch& b) {
  if (!b.mtp_targets.defined()) return;
  const Index rows = b.rows(), t = b.length;
  const std::int32_t* const targets = b.targets.as<std::int32_t>();
  const std::int32_t* const positions = b.positions.as<std::int32_t>();
  const float* const weights = b.loss_weights.as<float>();
  for (Index depth = 1; depth <= b.mtp_targets.dim(0); ++depth) {
    std::int32_t* const to = b.mtp_targets.as<std::int32_t>() + (depth - 1) * rows;
    float* const weight = b.mtp_weights.as<float>() + (depth - 1) * rows;
    for (Index begin = 0; begin < rows; begin += t)
      for (Index i = 0; i < t; ++i) {
        const bool inside = i + depth < t;
        const Index from = begin + std::min(i + depth, t - 1), at = begin + i;
        to[at] = targets[from];
        weight[at] = inside && positions[from] == positions[at] + depth ? weights[from] : 0.0f;
      }
  }
}

std::vector<double> mtp_tokens(std::span<const Batch> batches) {
  std::vector<double> sums;
  for (const Batch& b : batches) {
    if (!b.mtp_weights.defined()) continue;
    sums.resize(static_cast<std::size_t>(b.mtp_weights.dim(0)));
    const float* const weights = b.mtp_weights.as<float>();
    for (Index i = 0; i < b.mtp_weights.numel(); ++i)
      sums[static_cast<std::size_t>(i / b.rows())] += static_cast<double>(weights[i]);
  }
  return sums;
}

}  // namespace dstrain
