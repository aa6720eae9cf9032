#pragma once
// A trained run, opened to be evaluated or to write.

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "lib/core/files.h"
#include "lib/train/engine.h"

namespace dstrain {

// The resolved job of a run directory (or of one of its checkpoints), laid out for `ranks` ranks: as in the job when
// its mesh fits, else all of them data parallel. `overrides` are key=value. Throws Error{usage} when there is no run.
Config config_of_run(const Files& files, const std::string& path, const std::vector<std::string>& overrides, int ranks);

// Loads the weights of the newest usable checkpoint of the run at `path`, or of the checkpoint that `path` is, into the
// engine. Collective over the world. Returns its step. Throws Error{checkpoint} when there is none.
Index load_run(const Files& files, const std::string& path, World& world, Engine& engine,
               const std::function<void(const std::string&)>& report);

struct SamplingOptions {
  Index tokens = 100;        // to write at most
  double temperature = 1.0;  // 0: the most likely token always
  Index top_k = 0;           // 0: all
  std::uint64_t seed = 1;
};

// Writes tokens with a key-value cache. One rank; batch 1.
class Generator {
 public:
  // `config` is a resolved one-rank job; its sequence_length bounds prompt and output together. Borrowed.
  Generator(const Config& config, Engine& engine);

  // Calls `emit` for each new token as it comes; stops at options.tokens, at `end_of_document`, when emit returns
  // false, or when sequence_length positions are filled. Throws Error{usage} on an empty or too long prompt,
  // Error{nonfinite} when a logit is NaN.
  void run(std::span<const std::int32_t> prompt, const SamplingOptions& options, std::int32_t end_of_document,
           const std::function<bool(std::int32_t)>& emit);

 private:
  // Logits of the last of `tokens`, which follow what the cache holds.
  std::span<const float> forward(std::span<const std::int32_t> tokens);
  std::int32_t sample(std::span<const float> logits, const SamplingOptions& options, Index position) const;

  const Config& config_;
  Engine& engine_;
  Buffer cache_memory_, logits_memory_;
  std::vector<float> logits_;  // of one position, padding included
  KvCache cache_;
};

}  // namespace dstrain
