#include "lib/model/rotary.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace dstrain {

namespace {

double mscale(double factor, double m) { return factor <= 1 ? 1.0 : 0.1 * m * std::log(factor) + 1.0; }

// The pair that turns so often over the original length.
double pair_of(const ModelConfig& m, double turns) {
  const double length = static_cast<double>(m.rope_original_max_position_embeddings);
  return static_cast<double>(m.qk_rope_head_dim) * std::log(length / (turns * 2 * std::numbers::pi)) /
         (2 * std::log(m.rope_theta));
}

}  // namespace

std::vector<float> inverse_frequencies(const ModelConfig& m) {
  const auto pairs = m.qk_rope_head_dim / 2;
  const bool yarn = m.rope_type == "yarn";
  const double low = yarn ? std::max(std::floor(pair_of(m, m.rope_beta_fast)), 0.0) : 0;
  double high =
      yarn ? std::min(std::ceil(pair_of(m, m.rope_beta_slow)), static_cast<double>(m.qk_rope_head_dim - 1)) : 1;
  if (low == high) high += 0.001;
  std::vector<float> result;
  for (std::int64_t i = 0; i < pairs; ++i) {
    const double plain =
        std::pow(m.rope_theta, -2.0 * static_cast<double>(i) / static_cast<double>(m.qk_rope_head_dim));
    const double ramp = yarn ? std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0) : 0.0;
    result.push_back(static_cast<float>(plain * (1 - ramp) + plain / m.rope_factor * ramp));
  }
  return result;
}

float attention_factor(const ModelConfig& m) {
  if (m.rope_type != "yarn") return 1;
  if (m.rope_mscale > 0 && m.rope_mscale_all_dim > 0)
    return static_cast<float>(mscale(m.rope_factor, m.rope_mscale) / mscale(m.rope_factor, m.rope_mscale_all_dim));
  return static_cast<float>(mscale(m.rope_factor, 1));
}

float attention_scale(const ModelConfig& m) {
  const double scale = 1 / std::sqrt(static_cast<double>(m.head_dim));
  if (m.rope_type != "yarn" || m.rope_mscale_all_dim == 0) return static_cast<float>(scale);
  const double all = mscale(m.rope_factor, m.rope_mscale_all_dim);
  return static_cast<float>(scale * all * all);
}

}  // namespace dstrain
