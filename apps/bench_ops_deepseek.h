#pragma once
// What `bench ops` times of DeepSeek's layers.

#include "apps/bench_ops_timer.h"
#include "lib/config/config.h"

namespace dstrain {

// Latent attention's heads at the shapes of rank 0.
void bench_latent_attention(OpBench& bench, const Config& config);
// The routed experts of a layer, forward and backward, with every expert on this rank and random choices; then a line
// with the whole layer's rate.
void bench_experts(OpBench& bench, const Config& config);

}  // namespace dstrain
