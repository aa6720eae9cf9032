#pragma once
// The model of a Hugging Face config.json (transformers 4 and 5) of model_type llama or gpt2.

#include <string>

#include "lib/config/config.h"
#include "lib/core/files.h"

namespace dstrain {

// Absent keys take the defaults of LlamaConfig and GPT2Config. A key that changes the maths is supported or refused by
// name with its value; harmless keys are a table in the .cpp; any other is an error. Throws one Error{usage} with a
// line "path: key: message" for each mistake. `from` of the result is `path`.
ModelConfig model_from_hugging_face(const Files& files, const std::string& path);

// The same from text; `path` is only named.
ModelConfig model_from_json(const std::string& text, const std::string& path);

}  // namespace dstrain
