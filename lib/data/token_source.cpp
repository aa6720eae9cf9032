#include "lib/data/token_source.h"

#include <algorithm>

#include "lib/data/glob.h"

namespace dstrain {

namespace {

// Chunks of /tokens that a source keeps in memory, shared out over its files.
constexpr std::size_t kCacheBytes = 128u << 20, kLeastCache = 2u << 20, kMostCache = 32u << 20;

}  // namespace

TokenSource::TokenSource(const Files& files, const std::string& pattern) : first_{0} {
  const auto paths = expand_glob(files, pattern);
  require(!paths.empty(), ExitCode::data, "{}: no file matches", pattern);
  const std::size_t cache = std::clamp(kCacheBytes / paths.size(), kLeastCache, kMostCache);
  for (const auto& path : paths) {
    files_.push_back(std::make_unique<TokenFile>(files, path, cache));
    const TokenFileInfo& a = files_[0]->info();
    const TokenFileInfo& b = files_.back()->info();
    require(a.tokenizer_hash == b.tokenizer_hash && a.vocab_size == b.vocab_size, ExitCode::data,
            "{}: made with tokenizer {}, but {} with {}", path, hex(b.tokenizer_hash), paths[0], hex(a.tokenizer_hash));
    first_.push_back(first_.back() + files_.back()->tokens());
  }
}

Index TokenSource::documents() const {
  Index n = 0;
  for (const auto& f : files_) n += f->documents();
  return n;
}

std::uint64_t TokenSource::fingerprint() const {
  std::vector<std::uint64_t> words;
  for (const auto& f : files_) words.push_back(f->fingerprint());
  return xxh3(std::as_bytes(std::span(words)));
}

std::uint64_t TokenSource::document_fingerprint() const {
  std::vector<std::uint64_t> words;
  for (const auto& f : files_) words.push_back(f->document_fingerprint());
  return xxh3(std::as_bytes(std::span(words)));
}

std::size_t TokenSource::file_of(Index token) const {
  return static_cast<std::size_t>(std::upper_bound(first_.begin(), first_.end(), token) - first_.begin() - 1);
}

TokenSource::Place TokenSource::locate(Index token) {
  const std::size_t file = file_of(token);
  return {file, files_[file]->document_of(token - first_[file]), token - first_[file]};
}

void TokenSource::document_starts(Index begin, Index end, std::vector<Index>& into) {
  for (std::size_t i = file_of(begin); i < files_.size() && first_[i] < end; ++i) {
    if (files_[i]->tokens() == 0) continue;
    if (first_[i] > begin) into.push_back(first_[i]);
    const std::size_t before = into.size();
    files_[i]->document_starts(std::max<Index>(0, begin - first_[i]), std::min(end, first_[i + 1]) - first_[i], into);
    for (std::size_t k = before; k < into.size(); ++k) into[k] += first_[i];
  }
}

void TokenSource::check_document_end(Index token, std::int32_t value) {
  if (value == info().end_of_document) return;
  const Place place = locate(token);
  const TokenFile& f = *files_[place.file];
  require(value == f.info().end_of_document, ExitCode::data,
          "{}: document {} ends with token {}, expected {}; document_offsets are not those of the tokens", f.path(),
          place.document, value, f.info().end_of_document);
}

void TokenSource::read(Index begin, std::span<std::int32_t> into) {
  check(begin >= 0 && begin + static_cast<Index>(into.size()) <= tokens(), "tokens {} + {} of {}", begin, into.size(),
        tokens());
  while (!into.empty()) {
    const std::size_t i = file_of(begin);
    const auto n = static_cast<std::size_t>(std::min(static_cast<Index>(into.size()), first_[i + 1] - begin));
    files_[i]->read(begin - first_[i], into.first(n));
    into = into.subspan(n);
    begin += static_cast<Index>(n);
  }
}

}  // namespace dstrain
