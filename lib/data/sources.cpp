#include "lib/data/sources.h"

namespace dstrain {

TokenSources::TokenSources(const Files& files, const std::vector<DataSource>& list, Index vocab_size, bool documents)
    : entries(list) {
  require(!list.empty(), ExitCode::data, "no token file is named");
  for (const DataSource& entry : list) {
    sources.push_back(std::make_unique<TokenSource>(files, entry.path));
    const TokenFileInfo& a = info();
    const TokenFileInfo& b = sources.back()->info();
    require(a.tokenizer_hash == b.tokenizer_hash, ExitCode::data, "{}: made with tokenizer {}, but {} with {}",
            entry.path, hex(b.tokenizer_hash), list[0].path, hex(a.tokenizer_hash));
    require(b.vocab_size <= vocab_size, ExitCode::data, "{}: its vocabulary of {} is larger than model.vocab_size: {}",
            entry.path, b.vocab_size, vocab_size);
    if (documents) document_hashes.push_back(sources.back()->document_fingerprint());
  }
}

std::vector<Index> TokenSources::tokens() const {
  std::vector<Index> out;
  for (const auto& s : sources) out.push_back(s->tokens());
  return out;
}

std::vector<double> TokenSources::weights() const {
  std::vector<double> out;
  for (const DataSource& entry : entries)
    if (entry.weight > 0) out.push_back(entry.weight);
  check(out.empty() || out.size() == entries.size(), "{} weights of {} sources", out.size(), entries.size());
  return out;
}

std::string TokenSources::fingerprint() const {
  std::string text;
  for (const auto& s : sources) text += hex(s->fingerprint());
  if (const auto w = weights(); !w.empty()) text += hex(Mixture(w).fingerprint());
  for (const std::uint64_t hash : document_hashes) text += hex(hash);
  return hex(xxh3(text));
}

Sampler TokenSources::sampler(Index sequence_length, std::uint64_t seed, bool shuffle) const {
  const auto w = weights();
  for (std::size_t i = 0; i < w.size(); ++i)
    require(sources[i]->tokens() >= 2, ExitCode::data, "{}: {} token(s); a source with a weight needs two",
            entries[i].path, sources[i]->tokens());
  return {tokens(), sequence_length, seed, shuffle, w};
}

void TokenSources::require_epochs(const Sampler& sampler, Index samples, double otherwise, const std::string& list,
                                  const std::string& because) const {
  const auto epochs = sampler.epochs(samples);
  for (std::size_t i = 0; i < entries.size(); ++i) {
    const double bound = entries[i].epochs > 0 ? entries[i].epochs : otherwise;
    if (bound <= 0 || epochs[i] <= bound * (1 + 0x1p-40)) continue;
    // The most samples that stay within the bound: epochs() grows with them.
    Index low = 0, high = samples;
    while (high - low > 1) {
      const Index middle = low + (high - low) / 2;
      (sampler.epochs(middle)[i] <= bound ? low : high) = middle;
    }
    fail(ExitCode::data,
         "{}[{}] {}: {} read it {:.3f} times, and its epochs are {:.3f}; {} samples are the most, or raise its epochs, "
         "lower its weight, or give it more tokens ({} now)",
         list, i, entries[i].path, because, epochs[i], bound, low, sources[i]->tokens());
  }
}

}  // namespace dstrain
