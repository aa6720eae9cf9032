#include "lib/train/written_text.h"

#include <algorithm>
#include <utility>

namespace dstrain {

namespace {

// Bytes that do not end a UTF-8 character wait for the next token.
std::size_t whole_characters(const std::string& s) {
  for (std::size_t back = 1; back <= 3 && back <= s.size(); ++back) {
    const auto c = static_cast<unsigned char>(s[s.size() - back]);
    if ((c & 0xC0) == 0x80) continue;
    const std::size_t length = c >= 0xF0 ? 4 : c >= 0xE0 ? 3 : c >= 0xC0 ? 2 : 1;
    return length > back ? s.size() - back : s.size();
  }
  return s.size();
}

}  // namespace

WrittenText::WrittenText(const Tokenizer& tokenizer, std::span<const std::int32_t> prompt,
                         std::vector<std::string> stops)
    : tokenizer_(tokenizer), stops_(std::move(stops)) {
  for (const std::int32_t id : prompt)
    if (id < tokenizer.vocab_size()) all_.push_back(id);
  prompt_bytes_ = tokenizer_.decode(all_).size();
}

bool WrittenText::add(std::int32_t id) {
  if (id == tokenizer_.end_of_document()) {
    reason_ = "end_of_document";
    return false;
  }
  ids_.push_back(id);
  if (id >= tokenizer_.vocab_size()) return true;
  all_.push_back(id);
  // All of it: a token's text may depend on those before.
  const std::string whole = tokenizer_.decode(all_);
  text_ = whole.substr(std::min(prompt_bytes_, whole.size()));
  std::size_t end = std::string::npos;
  for (const std::string& stop : stops_) end = std::min(end, text_.find(stop));
  if (end == std::string::npos) return true;
  text_.resize(end);
  reason_ = "stop";
  return false;
}

std::string WrittenText::take(bool end) {
  std::size_t sure = end ? text_.size() : whole_characters(text_);
  if (!end)
    for (const std::string& stop : stops_)
      for (std::size_t n = std::min(stop.size() - 1, text_.size()); n > 0; --n)
        if (text_.compare(text_.size() - n, n, stop, 0, n) == 0) {
          sure = std::min(sure, text_.size() - n);
          break;
        }
  if (sure <= taken_) return "";
  const std::string part = text_.substr(taken_, sure - taken_);
  taken_ = sure;
  return part;
}

}  // namespace dstrain
