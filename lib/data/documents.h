#pragma once
// Documents: text files cut at their borders, in order, with memory for one document.
//
// file        a text file is one document
// blank_line  documents are separated by lines without anything but white space; line ends at their ends are left out
// record      a line is a document
// A .jsonl file holds one JSON object a line under every rule; its text is the string under a key. White space alone is
// no document.

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "lib/core/shape.h"
#include "lib/data/text.h"

namespace dstrain {

inline constexpr std::uint64_t kMaxDocument = 1ull << 30;  // bytes of one document, or of one JSON line

enum class DocumentRule : unsigned char { file, blank_line, record };
const char* name_of(DocumentRule rule);
DocumentRule document_rule(std::string_view name);  // REQUIRES: one of the names

struct RawDocument {
  std::string bytes;     // the text, or a JSON line
  std::size_t file = 0;  // in the reader's list
  Index line = 1;        // of its first byte, from 1
  bool json = false;
};

class DocumentReader {
 public:
  // `files` is borrowed.
  DocumentReader(const Files& files, std::vector<TextFile> texts, DocumentRule rule);
  ~DocumentReader();

  // The next document; false at the end. Throws Error{data} with path and line: unreadable, damaged, or more than
  // kMaxDocument bytes.
  bool next(RawDocument& into);
  std::uint64_t consumed() const { return before_ + (stream_ ? stream_->consumed() : 0); }  // stored bytes
  const std::vector<TextFile>& texts() const { return texts_; }

 private:
  bool next_line(std::string& into);  // without its line feed; appends
  bool next_of_file(RawDocument& into);
  void guard(std::size_t bytes, Index line) const;

  const Files& files_;
  std::vector<TextFile> texts_;
  DocumentRule rule_;
  std::size_t file_ = 0;  // the one being read, or the next
  std::unique_ptr<TextStream> stream_;
  std::uint64_t before_ = 0;
  std::vector<char> buffer_;
  std::size_t at_ = 0, held_ = 0;
  Index line_ = 0;  // lines read of the file
};

bool is_blank(std::string_view text);
// The text of a document: its bytes, or the string under `key` of its JSON object. Throws Error{data} with path, line
// and what was found.
std::string text_of(RawDocument&& document, const std::vector<TextFile>& texts, const std::string& key);

}  // namespace dstrain
