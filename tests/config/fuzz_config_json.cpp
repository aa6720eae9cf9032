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

Config job_of(const Files& files) {
  return resolve(parse_config(files, "job.yaml",
                              "run: { dir: d }\nmodel: { from: c.json }\ndata: { train: [t] }\n"
                              "training: { steps: 1, sequence_length: 1, global_batch_size: 1, micro_batch_size: 1 }\n",
                              {}),
                 1);
}

void subject(const std::string& input) {
  MemoryFiles files;
  files.put("c.json", input);
  Config first = job_of(files);
  if (const ModelConfig plain; first.model.rope_type == "default") {  // then these mean nothing, and are not written
    ModelConfig& m = first.model;
    m.rope_factor = plain.rope_factor;
    m.rope_original_max_position_embeddings = plain.rope_original_max_position_embeddings;
    m.rope_beta_fast = plain.rope_beta_fast;
    m.rope_beta_slow = plain.rope_beta_slow;
    m.rope_mscale = plain.rope_mscale;
    m.rope_mscale_all_dim = plain.rope_mscale_all_dim;
  }
  FileSettings settings = file_settings(input);
  settings.dtype = "bfloat16";
  files.put("c.json", to_hugging_face(first.model, settings));
  const Config second = job_of(files);
  check(to_yaml(second) == to_yaml(first), "config.json came back changed:\n{}\n{}", to_yaml(first), to_yaml(second));
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
  return fuzz::run(
      argc, argv, inputs,
      {"\"rope_scaling\":", "\"rope_parameters\":", "\"quantization_config\":", "\"model_type\":", "null", "true", "-1",
       "1e999", "9223372036854775808", "[", "]", "{", "}", ",", "\"\\u0000\"", "\"yarn\"", "0.5"},
      subject);
}
