#pragma once
// The normalizers of tokenizer.json: what happens to text before it is cut into pieces.

#include <memory>
#include <string>
#include <vector>

#include "lib/tokenizer/json.h"
#include "lib/tokenizer/regex.h"

namespace dstrain {

// Text on its way to the model. `zero` counts the bytes at its front that stand for what was at offset 0 of the input
// (PyPI tokenizers' alignments, as far as ids depend on them: Metaspace's prepend_scheme "first" asks).
struct NormalText {
  std::string text;
  std::size_t zero = 0;
};

// One thread's memory for normalizers.
struct NormalizerScratch {
  NormalText next;
  RegexMatcher matcher;
  std::vector<Part> parts;
};

// Immutable. All are linear in the text.
class Normalizer {
 public:
  virtual ~Normalizer() = default;
  // Replaces the text, which is valid UTF-8.
  virtual void apply(NormalText& text, NormalizerScratch& scratch) const = 0;
  // As PyPI tokenizers writes it.
  virtual OrderedJson to_json() const = 0;
};

// Null for null. Throws Error{data} with the place of what is not supported.
std::unique_ptr<const Normalizer> read_normalizer(const JsonNode& node);

}  // namespace dstrain
