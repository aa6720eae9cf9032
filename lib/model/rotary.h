#pragma once
// Rotary embeddings past their original length: YaRN (Peng et al. 2023) as Hugging Face and DeepSeek compute it.

#include <vector>

#include "lib/config/config.h"

namespace dstrain {

// (qk_rope_head_dim / 2) of a deepseek model. YaRN: with the pair's turns over the original length between beta_slow
// and beta_fast, a ramp between the frequency itself and the frequency / factor.
std::vector<float> inverse_frequencies(const ModelConfig& model);
// Of sines and cosines: get_mscale(factor, mscale) / get_mscale(factor, mscale_all_dim) when both are given, else
// get_mscale(factor, 1); 1 without YaRN. get_mscale(f, m) = 0.1 m ln(f) + 1.
float attention_factor(const ModelConfig& model);
// Of the attention's scores: head_dim^-1/2, times get_mscale(factor, mscale_all_dim)^2 with YaRN.
float attention_scale(const ModelConfig& model);

}  // namespace dstrain
