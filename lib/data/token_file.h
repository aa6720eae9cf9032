#pragma once
// Token files: PREFIX-00000.h5 and on. Format version 1:
//   /tokens            u16 (vocab_size <= 65536) or u32, (token_count)
//   /document_offsets  i64 (document_count + 1), first 0, last token_count, strictly rising; each document ends with
//                      end_of_document_id
//   /block_checksums   u64, XXH3 of each 2^20 tokens as stored
//   attributes of "/"  format_version, vocab_size, end_of_document_id, token_count, document_count (integers),
//                      tokenizer_hash (16 hexadecimal digits)
// A file is cut at the first document end past 2^28 tokens.

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "lib/core/arena.h"
#include "lib/core/files.h"
#include "lib/core/hash.h"
#include "lib/core/hdf5.h"

namespace dstrain {

inline constexpr Index kTokenBlock = 1 << 20;     // tokens under one checksum
inline constexpr Index kTokensPerFile = 1 << 28;  // a file is cut at the first document end past it
inline constexpr std::int64_t kTokenFormat = 1;

struct TokenFileInfo {
  std::uint64_t tokenizer_hash = 0;
  Index vocab_size = 0;
  std::int32_t end_of_document = 0;
};

// Writes PREFIX-00000.h5 and on. Each file is written as .partial, synced and renamed; files that exist are refused
// (Error{write}) before anything is written, but for the first `finished` ones, which it goes on behind.
class TokenWriter {
 public:
  TokenWriter(const Files& files, std::string prefix, TokenFileInfo info, Index tokens_per_file = kTokensPerFile,
              std::size_t finished = 0);
  ~TokenWriter();  // what was not finished is removed

  // A document without its end-of-document id, which is appended here. REQUIRES: ids below vocab_size.
  void add(std::span<const std::int32_t> document);
  // Completes the last file. Returns the paths of all, the finished ones too; none when there is no document.
  std::vector<std::string> finish();

  Index tokens() const { return total_tokens_; }        // added here
  Index documents() const { return total_documents_; }  // added here

 private:
  struct Open;
  void put(std::int32_t token);
  void flush();
  void close_file();
  std::string path(std::size_t number) const;

  const Files& files_;
  std::string prefix_;
  TokenFileInfo info_;
  Index tokens_per_file_;
  std::unique_ptr<Open> open_;
  std::vector<std::string> paths_;
  Index total_tokens_ = 0;
  Index total_documents_ = 0;
};

// PREFIX-00000.h5 and on, as far as they exist without a gap.
std::vector<std::string> token_files(const Files& files, const std::string& prefix);

// Reads one token file. Used by one thread at a time.
class TokenFile {
 public:
  // Checks attributes, shapes and types. Throws Error{data} with the path. `cache_bytes` of tokens are kept in memory.
  TokenFile(const Files& files, const std::string& path, std::size_t cache_bytes = 4u << 20);

  const TokenFileInfo& info() const { return info_; }
  Index tokens() const { return tokens_.shape()[0]; }
  Index documents() const { return offsets_.shape()[0] - 1; }
  const std::string& path() const { return path_; }
  const char* type() const { return name_of(tokens_.type()); }

  // Tokens [begin, begin + into.size()). A block's checksum is verified when it is first touched. Throws Error{data}
  // with file and offset on a wrong checksum and on an id outside the vocabulary. Allocates only on first use.
  void read(Index begin, std::span<std::int32_t> into);
  // First token and one past the last token of a document.
  std::pair<Index, Index> document(Index i);
  // The document that holds a token. Throws Error{data} when the offsets around it do not rise.
  Index document_of(Index token);
  // The first tokens of the documents that begin after `begin` and before `end`, rising. `end` <= tokens(). Throws
  // Error{data} when an offset that is read does not rise or is outside [0, tokens()]; the tokens are not looked at.
  void document_starts(Index begin, Index end, std::vector<Index>& into);
  // Everything: every checksum, every id, every offset and end of document.
  void verify();
  // Tells these tokens from others: a hash of what the file says of them (their number, tokenizer and checksums).
  std::uint64_t fingerprint() const;
  // Tells these documents from others: a hash of all document offsets, which are read and checked: Error{data} unless
  // they rise from 0 to tokens().
  std::uint64_t document_fingerprint() const;

 private:
  void verify_block(Index block);
  std::int64_t offset(Index document);
  void check_offset(Index document, std::int64_t previous, std::int64_t value) const;
  [[noreturn]] void bad(const std::string& message) const;

  std::string path_;
  Hdf5File file_;
  Hdf5Dataset tokens_, offsets_;
  TokenFileInfo info_;
  std::vector<std::uint64_t> checksums_;
  std::vector<char> verified_;
  std::vector<std::int64_t> marks_;  // each kMark-th document offset; made when first asked for
  std::vector<std::byte> block_;     // scratch
  std::vector<std::byte> scratch_;   // the tokens as stored
};

}  // namespace dstrain
