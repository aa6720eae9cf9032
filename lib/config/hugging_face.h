#pragma once
// A model as Hugging Face's config.json: read in the forms of transformers 4 and 5, written in that of 4, which 5
// reads.

#include <string>

#include "lib/config/config.h"
#include "lib/core/files.h"

namespace dstrain {

constexpr std::uint64_t kLargestConfigJson = 1u << 20;  // bytes

// Absent keys take the defaults of LlamaConfig, GPT2Config, DeepseekV2Config and DeepseekV3Config. A key that changes
// the maths is supported or refused by name with its value; harmless keys are a table in the .cpp; any other is an
// error. Throws one Error{usage} with a line "path: key: message" for each mistake. `from` of the result is `path`.
ModelConfig model_from_hugging_face(const Files& files, const std::string& path);

// The same from text; `path` is only named.
ModelConfig model_from_json(const std::string& text, const std::string& path);

// What a config.json says beside the model. Values are JSON text, "null" where the file has none.
struct FileSettings {
  std::string dtype;  // float32, bfloat16, float16; "" where the file names none or another
  std::string bos_token_id = "null", eos_token_id = "null", pad_token_id = "null";
};
// REQUIRES: text that model_from_json takes.
FileSettings file_settings(const std::string& text);

// config.json of a resolved model. `settings.dtype` is that of the weights beside it.
std::string to_hugging_face(const ModelConfig& model, const FileSettings& settings);

}  // namespace dstrain
