#pragma once
// Which source a sample comes from: a pure function of the weights and the sample's index, with no state.
//
// The sources are the leaves of a binary tree that halves the list. At a node whose left half has the share p of the
// weight, floor(p n + 1/2) of the first n samples go left and the others right (a Beatty sequence), so that both the
// side of sample n and its number on that side have a closed form. Of any first n samples a source gets
// n * weight / sum to within half a sample for each level of the tree; p is kept to 53 bits.

#include <cstdint>
#include <vector>

#include "lib/core/shape.h"

namespace dstrain {

class Mixture {
 public:
  // REQUIRES: at least one weight, each positive and finite.
  explicit Mixture(const std::vector<double>& weights);

  struct Place {
    Index source = 0;
    Index ordinal = 0;  // samples of the same source before this one
  };
  // REQUIRES: 0 <= sample < 2^62.
  Place at(Index sample) const;
  // How many of the samples 0 .. samples - 1 come from each source. REQUIRES: 0 <= samples <= 2^62.
  std::vector<Index> counts(Index samples) const;
  // Tells this mixture from others: the same for weights times a power of two.
  std::uint64_t fingerprint() const;

 private:
  struct Node {
    std::uint64_t left_share = 0;  // of 2^53
    Index leaf = -1;               // the source, or -1
    std::size_t left = 0, right = 0;
  };
  std::size_t build(const std::vector<double>& weights, std::size_t begin, std::size_t end);
  void count(std::size_t node, Index samples, std::vector<Index>& out) const;

  std::vector<Node> nodes_;  // the first is the root
};

}  // namespace dstrain
