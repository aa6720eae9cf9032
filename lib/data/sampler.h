#pragma once
// Which tokens a sample is: a pure function of (seed, global sample index), with no index file.

#include <cstdint>
#include <vector>

#include "lib/core/shape.h"

namespace dstrain {

// A permutation of [0, size), different for each (seed, epoch): a balanced Feistel network over the next power of four,
// walked along its cycles until it lands inside.
class Permutation {
 public:
  Permutation(std::uint64_t seed, std::uint64_t epoch, Index size);
  Index operator()(Index i) const;  // REQUIRES: 0 <= i < size

 private:
  static constexpr int kRounds = 6;
  std::uint64_t keys_[kRounds];
  std::uint64_t size_;
  int half_bits_;
};

struct Sample {
  Index epoch = 0;
  Index source = 0;
  Index begin = 0;   // first token, within the source
  Index tokens = 0;  // of the sample: T + 1, fewer at the end of a source, at least 2
};

// Samples of T + 1 tokens, one starting at each multiple of T of each source, so that every token but a source's first
// is predicted once an epoch; the last sample of a source may be short and is padded, nothing is dropped.
class Sampler {
 public:
  // `source_tokens`: tokens of each source. `shuffle` false: in order, for evaluation.
  // Throws Error{data} when there is no sample at all.
  Sampler(std::vector<Index> source_tokens, Index sequence_length, std::uint64_t seed, bool shuffle);

  Index samples() const { return first_.back(); }  // an epoch
  Index sequence_length() const { return length_; }
  // REQUIRES: global_sample >= 0.
  Sample locate(Index global_sample) const;

 private:
  std::vector<Index> source_tokens_;
  std::vector<Index> first_;  // (sources + 1) the first sample of each source
  Index length_;
  std::uint64_t seed_;
  bool shuffle_;
};

}  // namespace dstrain
