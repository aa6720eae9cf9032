#include "lib/model/rotary.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "lib/core/shape.h"

namespace dstrain {

namespace {

double mscale(double factor, double m) { return factor <= 1 ? 1.0 : 0.1 * m * std::log(factor) + 1.0; }

Index width_of(const ModelConfig& m) { return m.deepseek() ? m.qk_rope_head_dim : m.head_dim; }

// How far each pair is on its way from its own frequency, 0, to the slowed one, 1.
class Ramp {
 public:
  explicit Ramp(const ModelConfig& m) : m_(m), length_(static_cast<double>(m.rope_original_max_position_embeddings)) {
    if (m.rope_type != "yarn") return;
    const double last = static_cast<double>(width_of(m) - 1);
    const double fast = pair_of(m.rope_beta_fast), slow = pair_of(m.rope_beta_slow);
    low_ = std::max(m.rope_truncate ? std::floor(fast) : fast, 0.0);
    high_ = std::min(m.rope_truncate ? std::ceil(slow) : slow, last);
    if (low_ == high_) high_ += 0.001;
  }
  double at(Index pair, double frequency) const {
    if (m_.rope_type == "linear") return 1;
    if (m_.rope_type == "yarn") return std::clamp((static_cast<double>(pair) - low_) / (high_ - low_), 0.0, 1.0);
    if (m_.rope_type != "llama3") return 0;
    const double turns = length_ * frequency / (2 * std::numbers::pi);
    const double low = m_.rope_low_freq_factor, high = m_.rope_high_freq_factor;
    return std::clamp((high - turns) / (high - low), 0.0, 1.0);
  }

 private:
  // The pair that turns so often over the original length.
  double pair_of(double turns) const {
    return static_cast<double>(width_of(m_)) * std::log(length_ / (turns * 2 * std::numbers::pi)) /
           (2 * std::log(m_.rope_theta));
  }
  const ModelConfig& m_;
  double length_, low_ = 0, high_ = 1;
};

}  // namespace

std::vector<float> inverse_frequencies(const ModelConfig& m) {
  const Index width = width_of(m);
  const Ramp ramp(m);
  std::vector<float> result;
  for (Index i = 0; i < width / 2; ++i) {
    const double plain = std::pow(m.rope_theta, -2.0 * static_cast<double>(i) / static_cast<double>(width));
    const double slowed = ramp.at(i, plain);
    result.push_back(static_cast<float>(plain * (1 - slowed) + plain / m.rope_factor * slowed));
  }
  return result;
}

float attention_factor(const ModelConfig& m) {
  if (m.rope_type != "yarn") return 1;
  if (m.rope_attention_factor > 0) return static_cast<float>(m.rope_attention_factor);
  if (m.rope_mscale > 0 && m.rope_mscale_all_dim > 0)
    return static_cast<float>(mscale(m.rope_factor, m.rope_mscale) / mscale(m.rope_factor, m.rope_mscale_all_dim));
  return static_cast<float>(mscale(m.rope_factor, 1));
}

float attention_scale(const ModelConfig& m) {
  const double scale = 1 / std::sqrt(static_cast<double>(m.head_dim));
  double factor = m.deepseek() ? 1.0 : static_cast<double>(attention_factor(m));
  if (m.deepseek() && m.rope_type != "default" && m.rope_mscale_all_dim > 0)
    factor = mscale(m.rope_factor, m.rope_mscale_all_dim);
  return static_cast<float>(scale * factor * factor);
}

}  // namespace dstrain
