#pragma once
// A Config as text: YAML, YAML with origins, help, JSON Schema.

#include <string>

#include "lib/config/reader.h"

namespace dstrain {

// A job file with every key; reading it back gives an equal Config. Keys that mean nothing for the model's type are
// left out.
std::string to_yaml(const Config& config);

// The same with a comment behind each value that says where it came from; `config` is loaded.config or resolve()'s
// result, whose new values are "derived".
std::string print_config(const Config& config, const Loaded& loaded);

// Type, range, default and meaning of "section.key", or of every key of "section". Throws Error{usage} with a
// suggestion when there is no such key.
std::string explain(const std::string& key);

// JSON Schema (draft 7) of a job file, for editors.
std::string json_schema();

}  // namespace dstrain
