#pragma once
// The post-processors of tokenizer.json, as far as one text goes: ids before and behind it.

#include <cstdint>
#include <vector>

#include "lib/tokenizer/json.h"

namespace dstrain {

struct PostProcessor {
  std::vector<std::int32_t> before, after;
  OrderedJson json;  // as PyPI tokenizers writes it; null for null
};

// ByteLevel, TemplateProcessing, BertProcessing, RobertaProcessing and Sequences with at most one of the last three.
// Ids must be below `size`. Throws Error{data} with the place of what is wrong or not supported.
PostProcessor read_post_processor(const JsonNode& node, std::size_t size);

}  // namespace dstrain
