#pragma once
// Writes tokens with a key-value cache, a batch of prompts at once, on all stages and tensor ranks of a model.

#include <functional>
#include <span>
#include <vector>

#include "lib/train/decode_memory.h"
#include "lib/train/sampling.h"

namespace dstrain {

class Generator {
 public:
  // `engine` is for generation: training.micro_batch_size prompts at once of training.sequence_length tokens at most,
  // with `cache_length` positions each, outputs included. Everything is borrowed; `model` is a group of host messages
  // over the ranks of this data rank's model, used by nobody else meanwhile; so is `experts`, the expert group's.
  Generator(Engine& engine, ProcessGroup& model, ProcessGroup& experts, Index cache_length);

  // Whether this rank chooses the tokens: emit() is called here only.
  bool chooses() const { return model_.rank() == root_; }

  // Continues each prompt by up to `tokens` tokens, and never past max_position_embeddings. emit(prompt, id) takes a
  // token as it comes, end-of-document included, and returns whether that prompt goes on. Collective over the model's
  // ranks, which must ask for the same; over those of the expert group too, which may ask for other prompts but for as
  // many tokens: all go on until the last one has ended. REQUIRES: 1 to micro_batch_size prompts of 1 to
  // sequence_length ids.
  // Throws Error{nonfinite} on every rank when a logit is not a number.
  void run(std::span<const std::vector<std::int32_t>> prompts, Index tokens, const SamplingOptions& options,
           const std::function<bool(std::size_t, std::int32_t)>& emit);

 private:
  // The next token of every prompt that goes on, -1 for the others.
  std::vector<std::int32_t> choose(std::span<const std::vector<std::int32_t>> ids,
                                   std::span<const std::vector<std::int32_t>> prompts,
                                   const std::vector<std::int32_t>& last, const SamplingOptions& options, Index index,
                                   std::span<const float> logits,
                                   const std::function<bool(std::size_t, std::int32_t)>& emit) const;
  // (B, padded vocabulary) where the tokens are chosen; collective over the last stage's tensor ranks.
  std::vector<float> whole_logits(const Tensor& logits);

  Engine& engine_;
  ProcessGroup& model_;
  ProcessGroup& experts_;
  DecodeMemory memory_;
  int root_;  // the model's last stage's first tensor rank, in `model`
};

}  // namespace dstrain
