// config.json of foreign models: read, and what is taken is resolved, written in version 4's form and read again.

#include <filesystem>

#include "lib/config/hugging_face.h"
#include "lib/config/resolve.h"
#include "lib/config/writer.h"
#include "tests/support/fuzz.h"
#include "tests/support/memory_files.h"

using namespace dstrain;
using namespace dstrain::test;

namespace {

// The job of a config.json. What a job file says beside it is always the same, and is read once.
Config job_of(const std::string& json) {
  static Loaded job = [] {
    MemoryFiles files;
    files.put("c.json", R"({"model_type": "llama"})");
    return parse_config(files, "job.yaml",
                        "run: { dir: d }\nmodel: { from: c.json }\ndata: { train: [t] }\ntraining: { steps: 1, "
                        "sequence_length: 1, global_batch_size: 1, micro_batch_size: 1 }\n",
                        {});
  }();
  job.config.model = model_from_json(json, "c.json");
  return resolve(job, 1);
}

void subject(const std::string& input) {
  const Config first = job_of(input);
  FileSettings settings = file_settings(input);
  settings.dtype = "bfloat16";
  const std::string before = to_yaml(first), after = to_yaml(job_of(to_hugging_face(first.model, settings)));
  check(after == before, "config.json came back changed:\n{}\n{}", before, after);
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<std::string> inputs;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(DSTRAIN_SOURCE_DIR "/tests/golden"))
    if (entry.path().filename().string().ends_with("config.json"))
      inputs.push_back(read_file(system_files(), entry.path().string()));
  inputs.push_back(
      R"({"model_type": "deepseek_v3", "quantization_config": {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme":
          "dynamic", "weight_block_size": [128, 128]}, "rope_scaling": {"type": "yarn", "factor": 40, "beta_fast": 32,
          "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0, "original_max_position_embeddings": 4096}})");
  inputs.push_back(
      R"({"model_type": "llama", "rope_theta": 500000.0, "rope_scaling": {"rope_type": "llama3", "factor": 8.0,
          "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}})");
  return fuzz::run(argc, argv, inputs,
                   {"\"rope_scaling\":", "\"rope_parameters\":", "\"quantization_config\":", "\"model_type\":", "null",
                    "true", "-1", "1e999", "9223372036854775808", "[", "]", "{", "}", ",", "\"\\u0000\"", "\"yarn\"",
                    "\"linear\"", "\"llama3\"", "0.5"},
                   subject);
}
