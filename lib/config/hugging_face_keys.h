#pragma once
// The keys of Hugging Face's config.json and what they are when they are not there (transformers 4 and 5). `type` is
// one of the model types that config.h names.

#include <string>
#include <string_view>
#include <vector>

#include "lib/config/config.h"

namespace dstrain {

// JSON key -> our key. Where two JSON keys name one of ours (GPT-2's attribute_map), they must agree.
struct KeyName {
  std::string_view json;
  std::string_view ours;
};
std::vector<KeyName> key_names(const std::string& type);

// Keys that are accepted with these values only. Values are JSON text.
struct FixedKey {
  std::string_view model;  // "" all
  std::string_view key;
  std::vector<std::string_view> values;
};
const std::vector<FixedKey>& fixed_keys();

// Whether the key does not change what a forward or backward computes here.
bool harmless_key(const std::string& type, std::string_view key);

ModelConfig hugging_face_defaults(const std::string& type);

}  // namespace dstrain
