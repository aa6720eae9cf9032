// The lists of tensors against totals that DeepSeek published, and against files that transformers wrote.

#include "lib/model/file_tensors.h"

#include <map>

#include "lib/checkpoint/safetensors.h"
#include "lib/config/hugging_face.h"
#include "lib/config/resolve.h"
#include "tests/support/catch.h"

using namespace dstrain;

namespace {

const char* const kBias = ".e_score_correction_bias";

ModelConfig model_of(const std::string& file, int mtp_modules = 0) {
  const std::string path = std::string(DSTRAIN_SOURCE_DIR "/configs/") + file;
  std::vector<std::string> overrides{"parallel.data=1", "parallel.expert=1"};
  if (mtp_modules > 0) overrides.push_back(format("model.num_nextn_predict_layers={}", mtp_modules));
  const Loaded loaded = load_config(system_files(), path, overrides);
  return resolve(loaded, static_cast<int>(loaded.config.parallel.tensor * loaded.config.parallel.pipeline)).model;
}

// (dtype, shape) by name.
using Table = std::map<std::string, std::pair<std::string, std::vector<Index>>>;
Table table(const std::vector<FileTensor>& tensors) {
  Table t;
  for (const FileTensor& f : tensors) t[f.name] = {f.dtype, f.shape.to_vector()};
  return t;
}

}  // namespace

TEST_CASE("V3's FP8 checkpoint has the published tensors and bytes", "[model][file_tensors]") {
  const auto tensors = file_tensors(model_of("deepseek_v3_671b.yaml", 1), {.fp8 = true});
  CHECK(tensors.size() == 91991);
  CHECK(bytes(tensors) == 688'574'839'360);
  const Table t = table(tensors);
  CHECK(t.size() == tensors.size());
  const std::string at = "model.layers.61.";
  using Row = Table::mapped_type;
  CHECK(t.at(at + "eh_proj.weight") == Row{"BF16", {7168, 14336}});
  CHECK(t.at(at + "shared_head.head.weight") == Row{"BF16", {129280, 7168}});
  CHECK(t.at(at + "mlp.gate.e_score_correction_bias") == Row{"F32", {256}});
  CHECK(t.at(at + "self_attn.kv_a_proj_with_mqa.weight") == Row{"F8_E4M3", {576, 7168}});
  CHECK(t.at(at + "self_attn.kv_a_proj_with_mqa.weight_scale_inv") == Row{"F32", {5, 56}});
  CHECK(t.at("model.layers.0.mlp.down_proj.weight") == Row{"F8_E4M3", {7168, 18432}});
  CHECK(t.at("model.layers.3.mlp.gate.weight") == Row{"BF16", {256, 7168}});
  CHECK(t.at("lm_head.weight") == Row{"BF16", {129280, 7168}});
}

TEST_CASE("parameters of DeepSeek's models are the published ones", "[model][file_tensors]") {
  const auto v3 = file_tensors(model_of("deepseek_v3_671b.yaml"), {});
  CHECK(elements(v3, kBias) == 671'026'404'352);
  CHECK(elements(v3) - elements(v3, kBias) == 14'848);
  // What the module adds and does not share with the main model.
  Index mtp = 0;
  for (const FileTensor& t : file_tensors(model_of("deepseek_v3_671b.yaml", 1), {}))
    if (t.name.starts_with("model.layers.61.") && !t.name.ends_with("embed_tokens.weight") &&
        !t.name.ends_with("shared_head.head.weight"))
      mtp += t.shape.numel();
  CHECK(mtp == 11'610'068'224);
  CHECK(elements(file_tensors(model_of("deepseek_v2_236b.yaml"), {})) == 235'741'434'880);
  CHECK(elements(file_tensors(model_of("deepseek_v2_lite_16b.yaml"), {})) == 15'706'484'224);
}

TEST_CASE("the list is what transformers writes, name by name", "[model][file_tensors]") {
  for (const char* name : {"llama_tiny", "gpt2_tiny", "deepseek_v2_lite_tiny", "deepseek_v3_tiny",
                           "deepseek_v3_mtp_tiny", "deepseek_v3_mtp_pre_tiny"}) {
    INFO(name);
    const std::string path = std::string(DSTRAIN_SOURCE_DIR "/tests/golden/") + name;
    const std::string yaml = format(
        "run: {{ dir: unused }}\nmodel: {{ from: '{}/config.json' }}\ndata: {{ train: [unused] }}\n"
        "training: {{ steps: 1, sequence_length: 8, global_batch_size: 1, micro_batch_size: 1 }}\n",
        path);
    std::vector<std::string> overrides;
    // transformers writes the key, and no modules.
    if (std::string_view(name) == "deepseek_v3_tiny") overrides.emplace_back("model.num_nextn_predict_layers=0");
    const ModelConfig model = resolve(parse_config(system_files(), "job", yaml, overrides), 1).model;
    Table written;
    const SafetensorsFile file(system_files(), path + "/model.safetensors");
    for (const auto& [tensor, entry] : file.entries()) written[tensor] = {entry.dtype, entry.shape.to_vector()};
    CHECK(table(file_tensors(model, {.dtype = "F32"})) == written);
  }
}
