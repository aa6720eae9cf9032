#pragma once
// Between Hugging Face's directories and runs: safetensors and config.json to a run directory with one checkpoint, and
// the weights of a checkpoint to what transformers loads. Tensors go through in pieces of some MiB, whatever their
// size.

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "lib/core/clock.h"
#include "lib/core/files.h"

namespace dstrain {

struct Converted {
  std::size_t tensors = 0;
  std::uint64_t bytes = 0;         // of the tensors as written
  int files = 0;                   // that hold them
  std::vector<std::string> notes;  // what was left out, for people
};

// Makes the run directory `run` (new or empty; it appears whole or not at all) of the model in `directory`
// (config.json, and model.safetensors or model.safetensors.index.json with the files that it names): RUN/job.yaml,
// RUN/checkpoints/step_00000000 with weights alone, and RUN/hugging_face/ with config.json, the tokenizer's and
// generation's files as they are, and dtypes.json, the dtypes of the tensors. `threads` tensors at a time.
// Throws Error{usage} for a config.json that is not supported, Error{data} for files that break a rule or do not fit
// the model, Error{write}.
Converted import_model(const Files& files, const Clock& clock, const std::string& directory, const std::string& run,
                       int threads);

struct ExportOptions {
  std::string dtype;                       // float32, bfloat16, float16; "": of the imported files, else the job's
  std::uint64_t max_file = 5'000'000'000;  // bytes of tensors in a file, unless one tensor is larger
  int threads = 1;                         // files at a time
};

// Makes `directory` (new or empty; it appears whole or not at all) of the weights of `path`, a run (its newest
// checkpoint) or a checkpoint of a run. Balancing biases are F32 in every dtype, unless the imported files had another.
// Throws Error{usage} when there is no run, Error{checkpoint}, Error{data} when a number is too large for float16,
// Error{write}. `report` gets a line for each checkpoint that is passed over.
Converted export_model(const Files& files, const Clock& clock, const std::string& path, const std::string& directory,
                       const ExportOptions& options, const std::function<void(const std::string&)>& report);

// Whether `path` is a run directory or a checkpoint in one, and not a Hugging Face directory or file.
bool is_run(const Files& files, const std::string& path);

}  // namespace dstrain
