#pragma once
// The decoders of tokenizer.json: from tokens back to text.

#include <memory>
#include <string>
#include <vector>

#include "lib/tokenizer/json.h"
#include "lib/tokenizer/regex.h"

namespace dstrain {

// Immutable.
class Decoder {
 public:
  virtual ~Decoder() = default;
  // Changes the list of texts. All but the last step of a chain leave valid UTF-8.
  virtual void apply(std::vector<std::string>& texts, RegexMatcher& matcher) const = 0;
};

struct Decoders {
  std::vector<std::unique_ptr<const Decoder>> steps;  // in order; sequences are flattened
  // The one step is ByteLevel: a text's bytes do not depend on its neighbours.
  bool only_bytes = false;
  OrderedJson json;  // as PyPI tokenizers writes it

  // Without a decoder, texts are joined by spaces. Where PyPI tokenizers ends with U+FFFD in place of bytes that are
  // not UTF-8, because ByteLevel is the last step, the bytes themselves are returned.
  std::string decode(std::vector<std::string> texts) const;
};

// Throws Error{data} with the place of what is not supported.
Decoders read_decoder(const JsonNode& node);

}  // namespace dstrain
