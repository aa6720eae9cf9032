#pragma once
// A source of training data: token files, one after another.

#include <memory>
#include <string>
#include <vector>

#include "lib/data/token_file.h"

namespace dstrain {

// The token files of one source as one stream of tokens. A document never spans two files.
class TokenSource {
 public:
  // `pattern`: a path, or a glob with * and ? in its last part; the files are ordered by name. All must come from one
  // tokenizer. Throws Error{data} when nothing matches.
  TokenSource(const Files& files, const std::string& pattern);

  Index tokens() const { return first_.back(); }
  Index documents() const;
  const TokenFileInfo& info() const { return files_[0]->info(); }
  std::size_t files() const { return files_.size(); }
  TokenFile& file(std::size_t i) { return *files_[i]; }
  std::uint64_t fingerprint() const;           // of all files, in order
  std::uint64_t document_fingerprint() const;  // of all files, in order; reads all document offsets
  void read(Index begin, std::span<std::int32_t> into);
  // Where a token of the source lies.
  struct Place {
    std::size_t file = 0;
    Index document = 0;  // of the file
    Index token = 0;     // of the file
  };
  Place locate(Index token);
  // The documents that begin after token `begin` and before `end`: their first tokens, within the source, rising.
  void document_starts(Index begin, Index end, std::vector<Index>& into);
  // `value` was read at `token`, which document_starts() says is the last one of a document. Throws Error{data} with
  // the file and document unless it is the end-of-document id: offsets have no checksum of their own.
  void check_document_end(Index token, std::int32_t value);

 private:
  std::size_t file_of(Index token) const;

  std::vector<std::unique_ptr<TokenFile>> files_;
  std::vector<Index> first_;  // (files + 1)
};

}  // namespace dstrain
