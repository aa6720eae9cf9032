#pragma once
// The pre-tokenizers of tokenizer.json: text is cut into the pieces that the model sees, and may be respelled on the
// way.

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "lib/tokenizer/json.h"
#include "lib/tokenizer/regex.h"

namespace dstrain {

// Pieces of a text that belongs to this object or to the caller. One thread's memory, used again for each text.
class Pieces {
 public:
  struct Span {
    std::size_t begin, end;
  };

  // Starts with one piece: all of `text`, which is valid UTF-8 and outlives this use. `zero` as NormalText has it.
  void start(std::string_view text, std::size_t zero);
  std::string_view text() const { return text_; }
  const std::vector<Span>& spans() const { return spans_; }
  std::string_view piece(const Span& s) const { return text_.substr(s.begin, s.end - s.begin); }

  // For pre-tokenizers. cut() replaces the spans by those that visit(span, next) appends to `next`; empty ones vanish.
  template <class F>
  void cut(F&& visit) {
    next_.clear();
    for (const Span& s : spans_) visit(s, next_);
    std::erase_if(next_, [](const Span& s) { return s.begin == s.end; });
    spans_.swap(next_);
  }
  // respell() writes the text anew: write(span, is_first, out) appends a piece's new text and returns how much of it
  // stands for offset 0, given that the piece's first `zero` bytes do.
  template <class F>
  void respell(F&& write) {
    std::string& out = buffers_[current_ ^= 1];
    out.clear();
    std::size_t zero = 0;
    for (Span& s : spans_) {
      const std::size_t begin = out.size();
      const std::size_t old = s.begin < zero_ ? zero_ - s.begin : 0;
      const std::size_t kept = write(piece(s), old, out);
      if (begin == 0) zero = kept;
      s = {begin, out.size()};
    }
    std::erase_if(spans_, [](const Span& s) { return s.begin == s.end; });
    text_ = out;
    zero_ = zero;
  }

  RegexMatcher matcher;
  std::vector<Part> parts;
  std::vector<std::size_t> ends;

 private:
  std::string_view text_;
  std::size_t zero_ = 0;
  std::vector<Span> spans_, next_;
  std::string buffers_[2];
  int current_ = 0;
};

// Immutable. All but regular expressions are linear in the text.
class PreTokenizer {
 public:
  virtual ~PreTokenizer() = default;
  virtual void apply(Pieces& pieces) const = 0;
  virtual OrderedJson to_json() const = 0;
};

// What a pre_tokenizer says.
struct PreTokenizers {
  std::vector<std::unique_ptr<const PreTokenizer>> steps;  // in order; sequences are flattened
  // The last step is ByteLevel: the model sees each byte as a character, and does that respelling itself.
  bool bytes = false;
  OrderedJson json;  // as PyPI tokenizers writes it

  void apply(Pieces& pieces) const {
    for (const auto& s : steps) s->apply(pieces);
  }
};

// `spelling_model`: the model can respell bytes itself. Throws Error{data} with the place of what is not supported.
// Null gives no steps.
PreTokenizers read_pre_tokenizer(const JsonNode& node, bool spelling_model);

}  // namespace dstrain
