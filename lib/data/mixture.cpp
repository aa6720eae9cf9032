#include "lib/data/mixture.h"

#include <cmath>
#include <numeric>

#include "lib/core/errors.h"
#include "lib/core/hash.h"

namespace dstrain {

namespace {

constexpr int kShareBits = 53;
__extension__ using Wide = unsigned __int128;

// How many of the first n samples go left.
Index left_of(std::uint64_t share, Index n) {
  const Wide half = Wide{1} << (kShareBits - 1);
  return static_cast<Index>((static_cast<Wide>(n) * share + half) >> kShareBits);
}

}  // namespace

Mixture::Mixture(const std::vector<double>& weights) {
  check(!weights.empty(), "a mixture of nothing");
  for (const double w : weights) check(w > 0 && std::isfinite(w), "a weight of {}", w);
  nodes_.reserve(2 * weights.size());
  build(weights, 0, weights.size());
}

std::size_t Mixture::build(const std::vector<double>& weights, std::size_t begin, std::size_t end) {
  const std::size_t at = nodes_.size();
  nodes_.emplace_back();
  if (end - begin == 1) {
    nodes_[at].leaf = static_cast<Index>(begin);
    return at;
  }
  const std::size_t middle = begin + (end - begin) / 2;
  const auto sum = [&](std::size_t a, std::size_t b) {
    return std::accumulate(weights.begin() + static_cast<std::ptrdiff_t>(a),
                           weights.begin() + static_cast<std::ptrdiff_t>(b), 0.0);
  };
  const double left = sum(begin, middle), right = sum(middle, end);
  nodes_[at].left_share = static_cast<std::uint64_t>(std::llround(std::ldexp(left / (left + right), kShareBits)));
  nodes_[at].left = build(weights, begin, middle);
  nodes_[at].right = build(weights, middle, end);
  return at;
}

Mixture::Place Mixture::at(Index sample) const {
  check(sample >= 0 && sample < Index{1} << 62, "sample {}", sample);
  std::size_t at = 0;
  while (nodes_[at].leaf < 0) {
    const Node& node = nodes_[at];
    const Index before = left_of(node.left_share, sample);
    const bool left = left_of(node.left_share, sample + 1) > before;
    sample = left ? before : sample - before;
    at = left ? node.left : node.right;
  }
  return {nodes_[at].leaf, sample};
}

void Mixture::count(std::size_t node, Index samples, std::vector<Index>& out) const {
  const Node& n = nodes_[node];
  if (n.leaf >= 0) {
    out[static_cast<std::size_t>(n.leaf)] = samples;
    return;
  }
  const Index left = left_of(n.left_share, samples);
  count(n.left, left, out);
  count(n.right, samples - left, out);
}

std::vector<Index> Mixture::counts(Index samples) const {
  check(samples >= 0 && samples <= Index{1} << 62, "{} samples", samples);
  std::vector<Index> out((nodes_.size() + 1) / 2);
  count(0, samples, out);
  return out;
}

std::uint64_t Mixture::fingerprint() const {
  std::vector<std::uint64_t> shares;
  for (const Node& n : nodes_) shares.push_back(n.left_share);
  return xxh3(std::as_bytes(std::span(shares)));
}

}  // namespace dstrain
