#pragma once
// From logits to the next token. Pure.

#include <cstdint>
#include <span>
#include <vector>

#include "lib/core/shape.h"

namespace dstrain {

// Applied in this order, as transformers does.
struct SamplingOptions {
  double repetition_penalty = 1.0;  // of tokens seen: a positive logit is divided by it, a negative one multiplied
  double temperature = 1.0;         // divides the logits; 0: the most likely token always
  Index top_k = 0;                  // of the k most likely tokens; 0: all
  double top_p = 1.0;               // of the fewest most likely tokens whose probabilities sum to p; 1: all
  std::uint64_t seed = 1;
};

struct Candidate {
  std::int32_t id;
  double probability;
};

// What may come next; the probabilities sum to 1. `logits` of the whole vocabulary; `seen` are the ids so far, prompt
// included. Ties go to the smaller id. Throws Error{nonfinite} naming the id of a logit that is NaN or positive
// infinity.
std::vector<Candidate> candidates(std::span<const float> logits, std::span<const std::int32_t> seen,
                                  const SamplingOptions& options);

// Draws a candidate for the output's token number `index`. The same seed, prompt and index draw alike, whatever else is
// written.
std::int32_t draw(std::span<const Candidate> candidates, std::uint64_t seed, std::span<const std::int32_t> prompt,
                  Index index);

}  // namespace dstrain
