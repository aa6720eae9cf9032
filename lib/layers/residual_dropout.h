#pragma once
// Dropout (Srivastava et al. 2014) of GPT-2 at its three places. The bit of an element depends on (seed, place, layer,
// global sample, position, element) alone, so no layout, slot or micro-batch changes it.

#include <string>

#include "kernels/attention.h"
#include "lib/layers/layer.h"

namespace dstrain {

struct AttentionSpec;

// y = dropout(x), (rows, C); y may be x. Copies nothing and launches nothing when p is 0 or not training.
// REQUIRES: y is x when p is 0.
void residual_dropout(Context& context, const Batch& batch, const char* place, Index layer, float p, const Tensor& y,
                      const Tensor& x);
// The gradient: dy itself when p is 0, else new memory from context.scratch.
Tensor residual_dropout_gradient(Context& context, const Batch& batch, const char* place, Index layer, float p,
                                 const Tensor& dy);
// What the attention ops need; p is 0 outside training.
AttentionDropout attention_dropout(const Context& context, const Batch& batch, const AttentionSpec& spec);

}  // namespace dstrain
