#pragma once
// The sources of one data list, opened: what a Sampler's source numbers mean.

#include <memory>
#include <string>
#include <vector>

#include "lib/config/config.h"
#include "lib/data/sampler.h"
#include "lib/data/token_source.h"

namespace dstrain {

struct TokenSources {
  std::vector<DataSource> entries;
  std::vector<std::unique_ptr<TokenSource>> sources;  // one an entry
  std::vector<std::uint64_t> document_hashes;         // of each source; none unless documents are asked for

  // Throws Error{data} when a source cannot be read, when tokenizers differ, or when ids reach past `vocab_size`. With
  // `documents` (a job with a document mask) all document offsets are read once, checked, and part of the fingerprint.
  TokenSources(const Files& files, const std::vector<DataSource>& list, Index vocab_size, bool documents = false);

  std::vector<Index> tokens() const;    // of each source
  std::vector<double> weights() const;  // of each source; none when the list has no weights
  const TokenFileInfo& info() const { return sources[0]->info(); }
  // Tells these tokens in this order and mixture, and these documents where they are asked for, from others.
  std::string fingerprint() const;
  TokenSource& operator[](Index i) { return *sources[static_cast<std::size_t>(i)]; }

  // The sampler of these sources.
  Sampler sampler(Index sequence_length, std::uint64_t seed, bool shuffle) const;
  // Throws Error{data} when the global samples 0 .. samples - 1 read a source more often than its `epochs`, or, where
  // that is not given, more often than `otherwise` (0: no bound). `list` is the key, say "data.train"; `because` says
  // where the number of samples comes from.
  void require_epochs(const Sampler& sampler, Index samples, double otherwise, const std::string& list,
                      const std::string& because) const;
};

}  // namespace dstrain
