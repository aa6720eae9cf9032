#pragma once
// The text of tokens as they come: where it ends, and what of it may be shown already.

#include <span>
#include <string>
#include <vector>

#include "lib/tokenizer/tokenizer.h"

namespace dstrain {

class WrittenText {
 public:
  // The text that follows `prompt`, which ends before the first of the stop strings. The tokenizer is borrowed.
  WrittenText(const Tokenizer& tokenizer, std::span<const std::int32_t> prompt, std::vector<std::string> stops);

  // Takes the next id; returns whether the text goes on: not after the end of the document or a stop string. Ids that
  // no tokenizer names (a padded vocabulary has such rows) write nothing.
  bool add(std::int32_t id);

  // What came since the last call and will stay: whole UTF-8 characters that begin no stop string; everything at the
  // `end`.
  std::string take(bool end);

  const std::string& text() const { return text_; }              // without the stop string
  const std::vector<std::int32_t>& ids() const { return ids_; }  // without the end of the document
  // Why add() said no: "end_of_document" or "stop"; empty while it has not.
  const std::string& reason() const { return reason_; }

 private:
  const Tokenizer& tokenizer_;
  std::vector<std::string> stops_;
  std::vector<std::int32_t> all_;  // prompt and output, those with a text
  std::vector<std::int32_t> ids_;
  std::size_t prompt_bytes_;
  std::string text_, reason_;
  std::size_t taken_ = 0;
};

}  // namespace dstrain
