#include "lib/data/sampler.h"

#include <algorithm>
#include <bit>

#include "lib/core/rng.h"

namespace dstrain {

namespace {

// The finalizer of splitmix64.
std::uint64_t scramble(std::uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

}  // namespace

Permutation::Permutation(std::uint64_t seed, std::uint64_t epoch, Index size, std::string_view name)
    : size_(static_cast<std::uint64_t>(size)) {
  check(size >= 1, "a permutation of {}", size);
  half_bits_ = std::max(1, (static_cast<int>(std::bit_width(size_ - 1)) + 1) / 2);
  const Philox generator = philox(seed, name);
  for (int r = 0; r < kRounds; ++r) {
    const auto bits = generator(epoch, static_cast<std::uint64_t>(r));
    keys_[r] = static_cast<std::uint64_t>(bits[1]) << 32 | bits[0];
  }
}

Index Permutation::operator()(Index i) const {
  const std::uint64_t mask = (std::uint64_t{1} << half_bits_) - 1;
  std::uint64_t x = static_cast<std::uint64_t>(i);
  do {
    std::uint64_t left = x >> half_bits_, right = x & mask;
    for (const std::uint64_t key : keys_) {
      const std::uint64_t next = left ^ (scramble(right ^ key) & mask);
      left = right;
      right = next;
    }
    x = left << half_bits_ | right;
  } while (x >= size_);
  return static_cast<Index>(x);
}

Sampler::Sampler(std::vector<Index> source_tokens, Index sequence_length, std::uint64_t seed, bool shuffle,
                 const std::vector<double>& weights)
    : source_tokens_(std::move(source_tokens)), first_{0}, length_(sequence_length), seed_(seed), shuffle_(shuffle) {
  check(length_ >= 1, "samples of length {}", length_);
  for (const Index tokens : source_tokens_) {
    check(tokens >= 0, "a source of {} tokens", tokens);
    first_.push_back(first_.back() + (tokens < 2 ? 0 : (tokens - 2) / length_ + 1));
  }
  require(samples() > 0, ExitCode::data, "no sample: {} sources with fewer than two tokens each",
          source_tokens_.size());
  if (weights.empty()) return;
  check(weights.size() == source_tokens_.size(), "{} weights for {} sources", weights.size(), source_tokens_.size());
  for (std::size_t s = 0; s < weights.size(); ++s)
    require(samples(static_cast<Index>(s)) > 0, ExitCode::data,
            "no sample: source {} has a weight and {} token(s); two are needed", s, source_tokens_[s]);
  mixture_.emplace(weights);
}

Sample Sampler::locate(Index global_sample) const {
  check(global_sample >= 0, "sample {}", global_sample);
  Sample s;
  Index i = 0;  // the sample's number within its source
  if (mixture_) {
    const Mixture::Place place = mixture_->at(global_sample);
    const Index size = samples(place.source);
    s.source = place.source;
    s.epoch = place.ordinal / size;
    i = place.ordinal % size;
    if (shuffle_)
      i = Permutation(seed_, static_cast<std::uint64_t>(s.epoch), size,
                      format("sample order of source {}", s.source))(i);
  } else {
    s.epoch = global_sample / samples();
    i = global_sample % samples();
    if (shuffle_) i = Permutation(seed_, static_cast<std::uint64_t>(s.epoch), samples())(i);
    s.source = std::upper_bound(first_.begin(), first_.end(), i) - first_.begin() - 1;
    i -= first_[static_cast<std::size_t>(s.source)];
  }
  s.begin = i * length_;
  s.tokens = std::min(length_ + 1, source_tokens_[static_cast<std::size_t>(s.source)] - s.begin);
  return s;
}

std::vector<double> Sampler::epochs(Index samples) const {
  if (!mixture_)
    return std::vector(source_tokens_.size(), static_cast<double>(samples) / static_cast<double>(this->samples()));
  std::vector<double> out;
  for (const Index n : mixture_->counts(samples))
    out.push_back(static_cast<double>(n) / static_cast<double>(this->samples(static_cast<Index>(out.size()))));
  return out;
}

}  // namespace dstrain
