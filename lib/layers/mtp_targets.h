#pragma once
// What the modules of multi-token prediction are to predict: the batch's own targets, shifted within each sample.

#include <span>
#include <vector>

#include "lib/layers/batch.h"

namespace dstrain {

// Valid tokens of a step over all data ranks: what its losses are divided by.
struct ValidTokens {
  double next = 0;                                                      // sum of Batch::loss_weights
  std::vector<double> mtp = {};                                         // of each row of Batch::mtp_weights
  ValidTokens(double next_tokens, std::vector<double> mtp_tokens = {})  // NOLINT(google-explicit-constructor)
      : next(next_tokens), mtp(std::move(mtp_tokens)) {}
};

// Fills mtp_targets and mtp_weights, if defined, of a batch in host memory from its targets, positions and loss
// weights. Depth k, from 1, has at position i the target and the weight of position i + k; the weight is 0 past the end
// of the sample and where a document ends in between: positions then do not go on by one.
void fill_mtp(const Batch& batch);

// Sums of the rows of mtp_weights over the batches.
std::vector<double> mtp_tokens(std::span<const Batch> batches);

}  // namespace dstrain
