#pragma once
// What a tokenizer is made of; for tokenizer.cpp and encoder.cpp.

#include <memory>
#include <string>
#include <vector>

#include "lib/tokenizer/added_tokens.h"
#include "lib/tokenizer/decoder.h"
#include "lib/tokenizer/model.h"
#include "lib/tokenizer/normalizer.h"
#include "lib/tokenizer/post_processor.h"
#include "lib/tokenizer/pre_tokenizer.h"
#include "lib/tokenizer/tokenizer.h"

namespace dstrain {

struct Tokenizer::Data {
  Data(const JsonNode& root);  // NOLINT(google-explicit-constructor)

  std::unique_ptr<const Normalizer> normalizer;  // may be null
  PreTokenizers pre_tokenizer;
  std::unique_ptr<const Model> model;
  AddedTokens added;
  PostProcessor post_processor;
  Decoders decoder;
  std::int32_t end_of_document = -1;
  std::uint64_t hash = 0;
  // With a decoder that looks at bytes alone: each id's bytes, in one string.
  std::string bytes;
  std::vector<std::size_t> bytes_at;

  // Bytes that are not UTF-8 reach the model as they are.
  bool byte_level() const { return pre_tokenizer.bytes; }
  // What decoding makes of an id, before the decoder.
  const std::string& shown(std::int32_t id) const;
  std::string to_json() const;
};

}  // namespace dstrain
