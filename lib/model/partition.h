#pragma once
// How transformer layers are spread over pipeline stages. Pure.

#include <vector>

#include "lib/config/config.h"
#include "lib/core/shape.h"

namespace dstrain {

// Transformer layers [begin, end).
struct LayerRange {
  Index begin = 0;
  Index end = 0;
  friend bool operator==(const LayerRange&, const LayerRange&) = default;
};

// Splits `layers` into `stages` contiguous non-empty ranges so that the most expensive stage costs least; among equals
// the earlier stages take less, since they hold activations longest. Costs are FLOPs a token; the head is on the last
// stage. REQUIRES: 1 <= stages <= layers.
std::vector<LayerRange> partition(Index layers, double layer_cost, double head_cost, int stages);

// The same for a model: costs of matrix work at causal attention.
std::vector<LayerRange> partition(const ModelConfig& model, Index sequence_length, int stages);

}  // namespace dstrain
