#pragma once
// Rotary embeddings past their original length, as Hugging Face computes them: linear (Chen et al. 2023), YaRN (Peng et
// al. 2023), Llama 3's (Dubey et al. 2024). `dynamic` changes nothing up to max_position_embeddings, our longest.

#include <vector>

#include "lib/config/config.h"

namespace dstrain {

// (head_dim / 2) of a llama, (qk_rope_head_dim / 2) of a deepseek model. Linear: all / factor. YaRN and Llama 3's: with
// the pair's turns over the original length between two bounds, a ramp between the frequency itself and the frequency /
// factor: YaRN's in the pair's number, Llama 3's in its turns.
std::vector<float> inverse_frequencies(const ModelConfig& model);
// Of sines and cosines with YaRN, else 1: rope_attention_factor, or when it is not given get_mscale(factor, mscale) /
// get_mscale(factor, mscale_all_dim) when both are given, else get_mscale(factor, 1). get_mscale(f, m) = 0.1 m ln(f) +
// 1.
float attention_factor(const ModelConfig& model);
// Of the attention's scores: head_dim^-1/2. DeepSeek's: times get_mscale(factor, mscale_all_dim)^2 when that is given
// and the type is not default. Llama's: times attention_factor^2, which does for queries and keys, for all of a head
// turns.
float attention_scale(const ModelConfig& model);

}  // namespace dstrain
