#pragma once
// Which tokens a sample is: a pure function of (seed, global sample index), with no index file.

#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "lib/core/shape.h"
#include "lib/data/mixture.h"

namespace dstrain {

// A permutation of [0, size), different for each (seed, name, epoch): a balanced Feistel network over the next power of
// four, walked along its cycles until it lands inside.
class Permutation {
 public:
  Permutation(std::uint64_t seed, std::uint64_t epoch, Index size, std::string_view name = "sample order");
  Index operator()(Index i) const;  // REQUIRES: 0 <= i < size

 private:
  static constexpr int kRounds = 6;
  std::uint64_t keys_[kRounds];
  std::uint64_t size_;
  int half_bits_;
};

struct Sample {
  Index epoch = 0;  // of all sources together, or, with weights, of the source
  Index source = 0;
  Index begin = 0;   // first token, within the source
  Index tokens = 0;  // of the sample: T + 1, fewer at the end of a source, at least 2
};

// Samples of T + 1 tokens, one starting at each multiple of T of each source, so that every token but a source's first
// is predicted once an epoch; the last sample of a source may be short and is padded, nothing is dropped.
//
// Without weights the sources are one list, read (or permuted) as a whole, epoch after epoch. With weights Mixture says
// which source a global sample comes from and how many of that source came before it; each source goes through epochs
// of its own, permuted by (seed, source, epoch).
class Sampler {
 public:
  // `source_tokens`: tokens of each source. `shuffle` false: in order, for evaluation. `weights`: none, or one a
  // source, positive. Throws Error{data} when there is no sample at all, or with weights a source without one.
  Sampler(std::vector<Index> source_tokens, Index sequence_length, std::uint64_t seed, bool shuffle,
          const std::vector<double>& weights = {});

  Index samples() const { return first_.back(); }  // of all sources, once
  Index samples(Index source) const {
    return first_[static_cast<std::size_t>(source) + 1] - first_[static_cast<std::size_t>(source)];
  }
  Index sequence_length() const { return length_; }
  // REQUIRES: global_sample >= 0.
  Sample locate(Index global_sample) const;
  // How often each source is read by the global samples 0 .. samples - 1: 1 is all of it, once. Without weights every
  // source is read as often as the whole list.
  std::vector<double> epochs(Index samples) const;

 private:
  std::vector<Index> source_tokens_;
  std::vector<Index> first_;  // (sources + 1) the first sample of each source
  Index length_;
  std::uint64_t seed_;
  bool shuffle_;
  std::optional<Mixture> mixture_;
};

}  // namespace dstrain
