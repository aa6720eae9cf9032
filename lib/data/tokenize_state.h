#pragma once
// What `dstrain data tokenize` keeps beside its output, so that a command that was killed goes on.
//
// PREFIX.state.json is written first and names inputs and options; a later command must have the same. Finished token
// files are their own record: each was renamed into place whole. PREFIX.json, written last, holds the statistics.

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "lib/data/documents.h"
#include "lib/data/token_file.h"

namespace dstrain {

struct TokenizeOptions {
  std::vector<TextFile> texts;
  DocumentRule rule = DocumentRule::file;
  std::string key = "text";
  std::string out, eval_out;  // prefixes; eval_out empty: nothing is held out
  double eval_fraction = 0;
  Index tokens_per_file = kTokensPerFile;
};

// Of the documents on one side.
struct SideStatistics {
  std::vector<std::string> files;
  Index documents = 0;
  Index tokens = 0;                 // ends of documents included
  std::uint64_t bytes = 0;          // of their text
  std::array<Index, 48> lengths{};  // documents by tokens: [2^i, 2^(i+1))

  void count(Index tokens_of_document);
};

struct TokenizeStatistics {
  SideStatistics train, eval;
  Index empty = 0;
};

// Holds the state file, locked, until destroyed.
class TokenizeState {
 public:
  // Throws Error{usage} naming the first input or option that differs from those of the run that began here,
  // Error{write} when another process is at it, Error{data} when the file is damaged and token files depend on it.
  TokenizeState(const Files& files, const TokenizeOptions& options, const TokenFileInfo& info);

  bool complete() const { return complete_; }  // PREFIX.json is there, with all the files that it names
  // What finished files of a side hold, `bytes` aside. Throws Error{data} when one is not of this tokenizer.
  SideStatistics finished(const std::string& prefix) const;
  void write_statistics(const TokenizeStatistics& statistics) const;
  TokenizeStatistics read_statistics() const;
  std::string statistics_path() const { return prefix_ + ".json"; }

 private:
  void check_same(const std::string& text, const std::string& wanted) const;

  const Files& files_;
  std::string prefix_;
  TokenFileInfo info_;
  std::unique_ptr<File> lock_;
  bool complete_ = false;
};

}  // namespace dstrain
