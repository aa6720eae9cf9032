#include "lib/config/hugging_face.h"

#include <unistd.h>
#include <cmath>

#include <filesystem>

#include "lib/config/resolve.h"
#include "lib/config/writer.h"
#include "tests/support/catch.h"

using namespace dstrain;

namespace {

std::string config_report(const std::string& text) {
  try {
    model_from_json(text, "c.json");
    return "";
  } catch (const Error& e) {
    CHECK(e.code() == ExitCode::usage);
    return e.what();
  }
}

std::string golden(const std::string& name) { return DSTRAIN_SOURCE_DIR "/tests/golden/" + name; }

}  // namespace

TEST_CASE("config.json of a llama and of a GPT-2") {
  const ModelConfig l = model_from_hugging_face(system_files(), golden("llama_tiny_config.json"));
  CHECK(l.type == "llama");
  CHECK(l.vocab_size == 320);
  CHECK(l.hidden_size == 64);
  CHECK(l.num_hidden_layers == 2);
  CHECK(l.num_attention_heads == 4);
  CHECK(l.num_key_value_heads == 2);
  CHECK(l.head_dim == 16);
  CHECK(l.intermediate_size == 172);
  CHECK(l.max_position_embeddings == 128);
  CHECK(l.rms_norm_eps == 1e-5);
  CHECK(l.rope_theta == 10000.0);
  CHECK(l.hidden_act == "silu");
  CHECK_FALSE(l.tie_word_embeddings);

  const ModelConfig g = model_from_hugging_face(system_files(), golden("gpt2_tiny_config.json"));
  CHECK(g.type == "gpt2");
  CHECK(g.vocab_size == 320);
  CHECK(g.hidden_size == 48);
  CHECK(g.num_hidden_layers == 2);
  CHECK(g.num_attention_heads == 3);
  CHECK(g.intermediate_size == 0);
  CHECK(g.max_position_embeddings == 64);
  CHECK(g.layer_norm_epsilon == 1e-5);
  CHECK(g.hidden_act == "gelu_new");
  CHECK(g.tie_word_embeddings);
  CHECK(g.resid_pdrop == 0.0);
}

TEST_CASE("absent keys take Hugging Face's defaults") {
  const ModelConfig l = model_from_json(R"({"model_type": "llama"})", "c.json");
  CHECK(l.vocab_size == 32000);
  CHECK(l.hidden_size == 4096);
  CHECK(l.intermediate_size == 11008);
  CHECK(l.num_hidden_layers == 32);
  CHECK(l.num_attention_heads == 32);
  CHECK(l.max_position_embeddings == 2048);
  CHECK(l.rms_norm_eps == 1e-6);
  CHECK_FALSE(l.tie_word_embeddings);
  const ModelConfig g = model_from_json(R"({"model_type": "gpt2"})", "c.json");
  CHECK(g.vocab_size == 50257);
  CHECK(g.hidden_size == 768);
  CHECK(g.num_hidden_layers == 12);
  CHECK(g.max_position_embeddings == 1024);
  CHECK(g.attn_pdrop == 0.1);
  CHECK(g.tie_word_embeddings);
}

TEST_CASE("both spellings of the rotary base, and GPT-2's other names") {
  CHECK(model_from_json(R"({"model_type": "llama", "rope_theta": 500000.0, "rope_scaling": null})", "c").rope_theta ==
        5e5);
  CHECK(model_from_json(R"({"model_type": "llama", "rope_parameters": {"rope_theta": 7000, "rope_type": "default"}})",
                        "c")
            .rope_theta == 7000);
  CHECK(model_from_json(R"({"model_type": "gpt2", "n_ctx": 256, "n_positions": 256})", "c").max_position_embeddings ==
        256);
  CHECK(model_from_json(R"({"model_type": "gpt2", "hidden_size": 96})", "c").hidden_size == 96);
}

TEST_CASE("rotary embeddings past their original length") {
  const ModelConfig llama3 = model_from_json(R"({"model_type": "llama", "rope_theta": 500000.0, "rope_scaling":
      {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 8192,
       "rope_type": "llama3"}})",
                                             "c");
  CHECK(llama3.rope_type == "llama3");
  CHECK(llama3.rope_factor == 32);
  CHECK(llama3.rope_high_freq_factor == 4);
  CHECK(llama3.rope_original_max_position_embeddings == 8192);
  const ModelConfig yarn = model_from_json(R"({"model_type": "llama", "rope_parameters": {"rope_type": "yarn",
      "rope_theta": 1e6, "factor": 4, "attention_factor": 1.25, "truncate": false, "beta_fast": null, "mscale": null,
      "low_freq_factor": 3}})",
                                           "c");
  CHECK(yarn.rope_type == "yarn");
  CHECK(yarn.rope_theta == 1e6);
  CHECK(yarn.rope_attention_factor == 1.25);
  CHECK_FALSE(yarn.rope_truncate);
  CHECK(yarn.rope_beta_fast == 32);
  CHECK(yarn.rope_low_freq_factor == 1);  // what the type does not read is as if it were not there
  CHECK(
      model_from_json(R"({"model_type": "llama", "rope_scaling": {"type": "linear", "factor": 4.0}})", "c").rope_type ==
      "linear");
  const ModelConfig plain = model_from_json(
      R"({"model_type": "deepseek_v3", "rope_parameters": {"rope_type": "default", "factor": 9, "mscale": 1}})", "c");
  CHECK(plain.rope_factor == 1);
  CHECK(plain.rope_mscale == 0);
}

TEST_CASE("the row of pad_token_id is not trained, as PyTorch's padding_idx") {
  const auto pad = [](const char* type, const char* id) {
    return model_from_json(format(R"({{"model_type": "{}", "vocab_size": 10, "pad_token_id": {}}})", type, id), "c")
        .pad_token_id;
  };
  CHECK(pad("llama", "null") == -1);
  CHECK(pad("llama", "0") == 0);
  CHECK(pad("deepseek_v2", "9") == 9);
  CHECK(pad("llama", "-1") == 9);
  CHECK(pad("llama", "10") == -1);
  CHECK(pad("gpt2", "0") == -1);
  CHECK(config_report(R"({"model_type": "llama", "pad_token_id": [0]})") ==
        "c.json: pad_token_id: expected an integer or null, found [0]");
}

TEST_CASE("keys that well-known files carry") {
  CHECK(
      config_report(R"({"model_type": "llama", "is_llama_config": true, "rope_interleaved": false, "pretraining_tp": 2,
                   "transformers.js_config": {"kv_cache_dtype": {"fp16": "float16"}}, "hidden_act": "swish"})") == "");
  CHECK(config_report(R"({"model_type": "gpt2", "n_special": 0, "predict_special_tokens": true, "output_past": true,
                   "_num_labels": 1, "reorder_and_upcast_attn": true, "activation_function": "gelu_fast"})") == "");
  CHECK(model_from_json(R"({"model_type": "gpt2", "scale_attn_by_inverse_layer_idx": true})", "c")
            .scale_attn_by_inverse_layer_idx);
  CHECK_FALSE(model_from_json(R"({"model_type": "deepseek_v3", "rope_interleave": false})", "c").rope_interleave);
  CHECK(model_from_json(R"({"model_type": "deepseek_v3", "num_local_experts": 6, "num_mtp_layers": 2})", "c")
            .num_nextn_predict_layers == 2);
  CHECK(model_from_json(R"({"model_type": "deepseek_v2", "num_experts": 6})", "c").n_routed_experts == 6);
}

TEST_CASE("config.json of DeepSeek-V3 and V2, in transformers' forms of version 5 and 4") {
  const ModelConfig v3 = model_from_hugging_face(system_files(), golden("deepseek_v3_tiny/config.json"));
  CHECK(v3.type == "deepseek_v3");
  CHECK(v3.q_lora_rank == 24);
  CHECK(v3.kv_lora_rank == 16);
  CHECK(v3.qk_nope_head_dim == 8);
  CHECK(v3.qk_rope_head_dim == 4);
  CHECK(v3.v_head_dim == 8);
  CHECK(v3.n_routed_experts == 8);
  CHECK(v3.num_experts_per_tok == 2);
  CHECK(v3.n_group == 4);
  CHECK(v3.topk_group == 2);
  CHECK(v3.norm_topk_prob);
  CHECK(v3.routed_scaling_factor == 2.5);
  CHECK(v3.rope_type == "yarn");
  CHECK(v3.rope_factor == 4.0);
  CHECK(v3.rope_original_max_position_embeddings == 16);
  CHECK(v3.rope_mscale_all_dim == 1.0);
  CHECK(v3.num_nextn_predict_layers == 1);

  const ModelConfig v2 = model_from_json(R"({"model_type": "deepseek_v2", "q_lora_rank": null, "n_group": null,
      "topk_method": "greedy", "num_experts_per_tok": 6, "seq_aux": true, "aux_loss_alpha": 0.001, "rope_theta": 10000,
      "rope_scaling": {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096, "beta_fast": 32,
                       "beta_slow": 1, "mscale": 0.707, "mscale_all_dim": 0.707}})",
                                         "c");
  CHECK(v2.q_lora_rank == 0);
  CHECK(v2.n_group == 1);
  CHECK(v2.n_routed_experts == 64);
  CHECK(v2.n_shared_experts == 2);
  CHECK(v2.rope_type == "yarn");
  CHECK(v2.rope_mscale == 0.707);
  const ModelConfig zero =
      model_from_json(R"({"model_type": "deepseek_v3", "rope_scaling": {"type": "yarn", "factor": 40,
      "original_max_position_embeddings": 4096, "mscale": -0.0}})",
                      "c");
  CHECK_FALSE(std::signbit(zero.rope_mscale));
  const auto refused = [](const char* type, const char* keys) {
    return config_report(format(R"({{"model_type": "{}", {}}})", type, keys));
  };
  CHECK(refused("deepseek_v3", R"("scoring_func": "softmax")") ==
        "c.json: scoring_func: \"softmax\" is not supported; only \"sigmoid\" is");
  CHECK(refused("deepseek_v3", R"("moe_layer_freq": 2)") == "c.json: moe_layer_freq: 2 is not supported; only 1 is");
  CHECK(refused("deepseek_v2", R"("norm_topk_prob": true)") ==
        "c.json: norm_topk_prob: true is not supported; only false is");
  CHECK(refused("deepseek_v2", R"("rope_scaling": {"type": "longrope"})") ==
        "c.json: rope_scaling.type: \"longrope\" is not supported; only default, linear, dynamic, yarn and llama3 are");
  CHECK(refused("deepseek_v2", R"("quantization_config": {"quant_method": "fp8"})") ==
        "c.json: quantization_config.weight_block_size: missing; only [128,128] is supported");
}

TEST_CASE("what changes the maths is refused by name and value") {
  const std::pair<const char*, const char*> llama[] = {
      {R"("rope_scaling": {"rope_type": "llama3", "factor": 8.0})",
       "c.json: rope_scaling.low_freq_factor: missing; llama3 has no default\n"
       "c.json: rope_scaling.high_freq_factor: missing; llama3 has no default"},
      {R"("rope_scaling": {"type": "linear"})", "c.json: rope_scaling.factor: missing; linear has no default"},
      {R"("rope_scaling": {"type": "linear", "factor": 0.5})",
       "c.json: rope_scaling.factor: expected a number in [1, 1000000], found 0.5"},
      {R"("rope_scaling": {"type": "linear", "rope_type": "yarn", "factor": 2})",
       "c.json: rope_scaling.type: \"linear\" differs from rope_type: \"yarn\""},
      {R"("rope_scaling": {"rope_type": "longrope", "short_factor": [1], "factor": 2})",
       "c.json: rope_scaling.rope_type: \"longrope\" is not supported; only default, linear, dynamic, yarn and llama3 "
       "are\n"
       "c.json: rope_scaling.short_factor: [1] is not supported"},
      {R"("rope_scaling": {"rope_type": "yarn", "factor": 2, "attention_factor": 0.0})",
       "c.json: rope_scaling.attention_factor: 0.0 is not supported"},
      {R"("rope_scaling": {"type": "linear", "factor": 2}, "rope_parameters": {"rope_type": "default"})",
       "c.json: rope_scaling: {\"factor\":2,\"type\":\"linear\"} differs from rope_parameters: "
       "{\"rope_type\":\"default\"}"},
      {R"("rope_parameters": [1])", "c.json: rope_parameters: expected a mapping, found [1]"},
      {R"("rope_theta": 1e4, "rope_parameters": {"rope_theta": 2e4})",
       "c.json: rope_parameters.rope_theta: 20000.0 differs from rope_theta: 10000.0"},
      {R"("hidden_act": "gelu")", "c.json: hidden_act: \"gelu\" is not supported; only silu is"},
      {R"("hidden_act": "relu")",
       "c.json: hidden_act: expected one of silu, gelu_new, gelu_pytorch_tanh, gelu, found \"relu\""},
      {R"("rope_interleaved": true)", "c.json: rope_interleaved: true is not supported; only false is"},
      {R"("attention_dropout": 0.1)", "c.json: attention_dropout: 0.1 is not supported; only 0 or 0.0 is"},
      {R"("quantization_config": {"bits": 4})",
       "c.json: quantization_config: {\"bits\":4} is not supported; only quant_method fp8 is"},
      {R"("architectures": ["LlamaForSequenceClassification"])",
       "c.json: architectures: [\"LlamaForSequenceClassification\"] is not supported; only null or "
       "[\"LlamaForCausalLM\"] is"},
      {R"("sliding_window": 4096)", "c.json: sliding_window: 4096: unknown key; it may change what the model computes"},
      {R"("hidden_size": "64")", "c.json: hidden_size: expected an integer, found \"64\""},
      {R"("hidden_size": 64.5)", "c.json: hidden_size: expected an integer, found 64.5"},
      {R"("hidden_size": null)", "c.json: hidden_size: expected an integer, found null"},
      {R"("num_hidden_layers": 18446744073709551615)",
       "c.json: num_hidden_layers: expected an integer in [1, 10000], found 18446744073709551615"},
      {R"("rms_norm_eps": 0)", "c.json: rms_norm_eps: expected a number in [1e-30, 1], found 0"},
      {R"("tie_word_embeddings": 1)", "c.json: tie_word_embeddings: expected true or false, found 1"},
      {R"("hidden_size": 1, "hidden_size": 2)", "c.json: hidden_size: given twice"},
  };
  for (const auto& [keys, expected] : llama)
    CHECK(config_report(format(R"({{"model_type": "llama", {}}})", keys)) == expected);
  const std::pair<const char*, const char*> gpt2[] = {
      {R"("activation_function": "relu")",
       "c.json: activation_function: expected one of silu, gelu_new, gelu_pytorch_tanh, gelu, found \"relu\""},
      {R"("activation_function": "silu")",
       "c.json: activation_function: \"silu\" is not supported; gelu_new, gelu_pytorch_tanh and gelu are"},
      {R"("scale_attn_weights": null)", "c.json: scale_attn_weights: expected true or false, found null"},
      {R"("add_cross_attention": true)", "c.json: add_cross_attention: true is not supported; only false is"},
      {R"("n_ctx": 128, "n_positions": 256)", "c.json: n_positions: 256 differs from n_ctx: 128"},
      {R"("rope_theta": 1.0)", "c.json: rope_theta: 1.0: unknown key; it may change what the model computes"},
  };
  for (const auto& [keys, expected] : gpt2) {
    const std::string found = config_report(format(R"({{"model_type": "gpt2", {}}})", keys));
    if (std::string(keys).find("n_ctx") == std::string::npos)
      CHECK(found == expected);
    else
      CHECK(found.find("differs from") != std::string::npos);
  }
  CHECK(config_report(R"({"model_type": "mamba"})") ==
        "c.json: model_type: \"mamba\" is not supported; llama, gpt2, deepseek_v2 and deepseek_v3 are");
  CHECK(config_report("[]") == "c.json: expected a mapping, found []");
  CHECK(config_report("{").find("c.json: not valid JSON: ") == 0);
  CHECK(config_report(std::string(100, '[')).find("c.json: ") == 0);
  CHECK(config_report("{\"model_type\": \"\xff\"}").find("c.json: not valid JSON: ") == 0);
}

TEST_CASE("model.from is read first; the job's own keys override it") {
  const std::string yaml =
      "run: {dir: r}\n"
      "model: {num_hidden_layers: 1, from: " +
      golden("llama_tiny_config.json") +
      "}\n"
      "training: {steps: 10, sequence_length: 16, global_batch_size: 8, micro_batch_size: 2}\n";
  const Loaded loaded = parse_config(system_files(), "job.yaml", yaml, {"model.vocab_size=77"});
  CHECK(loaded.config.model.num_hidden_layers == 1);
  CHECK(loaded.config.model.vocab_size == 77);
  CHECK(loaded.config.model.hidden_size == 64);
  CHECK(loaded.origin("model.hidden_size").text == golden("llama_tiny_config.json"));
  CHECK(loaded.origin("model.num_hidden_layers").text == "job.yaml:2:9");
  CHECK_THROWS_WITH(
      parse_config(system_files(), "job.yaml", yaml, {"model.from=/nonexistent"}),
      "override 'model.from=/nonexistent': model.from: cannot open /nonexistent: No such file or directory");
}

TEST_CASE("a model written as config.json reads back as itself") {
  // transformers 5 wrote the goldens; keys that are rare there are set here.
  for (const std::string& overrides :
       {std::string("llama_tiny/config.json|"), std::string("gpt2_tiny/config.json|"),
        std::string("deepseek_v3_tiny/config.json|"), std::string("deepseek_v2_lite_tiny/config.json|"),
        std::string("llama_tiny/config.json|model.attention_bias=true|model.mlp_bias=true|model.rope_theta=123.5|"
                    "model.tie_word_embeddings=true|model.head_dim=20|model.rms_norm_eps=0.001"),
        std::string("llama_tiny/config.json|model.rope_type=llama3|model.rope_factor=8|model.rope_low_freq_factor=2|"
                    "model.rope_high_freq_factor=3|model.rope_original_max_position_embeddings=16"),
        std::string("llama_tiny/config.json|model.rope_type=yarn|model.rope_factor=8|model.rope_truncate=false|"
                    "model.rope_attention_factor=1.25|model.rope_beta_fast=16|model.rope_mscale=0.5|"
                    "model.rope_mscale_all_dim=0.25"),
        std::string("llama_tiny/config.json|model.rope_type=linear|model.rope_factor=1.5"),
        std::string("llama_tiny/config.json|model.rope_type=dynamic|model.rope_factor=2|model.pad_token_id=3"),
        std::string("gpt2_tiny/config.json|model.scale_attn_weights=false|model.scale_attn_by_inverse_layer_idx=true"),
        std::string("deepseek_v3_tiny/config.json|model.rope_interleave=false|model.rope_type=yarn"),
        std::string("gpt2_tiny/config.json|model.intermediate_size=50|model.attn_pdrop=0.25|model.hidden_act=gelu"),
        std::string("deepseek_v3_tiny/config.json|model.norm_topk_prob=false|model.rope_mscale=-0|"
                    "model.rope_mscale_all_dim=0|model.q_lora_rank=0|model.n_shared_experts=3"),
        std::string("deepseek_v2_lite_tiny/config.json|model.topk_method=group_limited_greedy|model.n_group=4|"
                    "model.topk_group=2|model.rope_type=default|model.rope_factor=1|"
                    "model.rope_original_max_position_embeddings=0|model.rope_mscale=0|model.rope_mscale_all_dim=0|"
                    "model.q_lora_rank=9")}) {
    INFO(overrides);
    std::vector<std::string> words;
    for (std::size_t at = 0; at <= overrides.size();) {
      const std::size_t end = std::min(overrides.find('|', at), overrides.size());
      if (end > at) words.push_back(overrides.substr(at, end - at));
      at = end + 1;
    }
    const auto job = [](const std::string& from, const std::vector<std::string>& changes) {
      const std::string yaml = format(
          "run: {{ dir: d }}\nmodel: {{ from: '{}' }}\ndata: {{ train: [t] }}\n"
          "training: {{ steps: 1, sequence_length: 8, global_batch_size: 1, micro_batch_size: 1 }}\n",
          from);
      return resolve(parse_config(system_files(), "job.yaml", yaml, changes), 1);
    };
    const std::string source = golden(words[0]);
    const Config first = job(source, {words.begin() + 1, words.end()});
    FileSettings settings = file_settings(read_file(system_files(), source));
    CHECK(settings.dtype == "float32");
    const std::string text = to_hugging_face(first.model, settings);
    CHECK(text.find("rope_parameters") == std::string::npos);
    const std::string path =
        format("{}/dstrain-config-{}.json", std::filesystem::temp_directory_path().string(), getpid());
    write_file_atomically(system_files(), path, text);
    CHECK(to_yaml(job(path, {})) == to_yaml(first));
    const FileSettings again = file_settings(text);
    CHECK(again.dtype == settings.dtype);
    CHECK(again.eos_token_id == settings.eos_token_id);
    std::filesystem::remove(path);
  }
}

TEST_CASE("FP8's quantization_config is read, other blocks and formats are refused") {
  const auto with = [](const std::string& keys) {
    return format(R"({{"model_type": "deepseek_v3", "num_nextn_predict_layers": 0, "quantization_config": {{{}}}}})",
                  keys);
  };
  CHECK(model_from_json(with(R"("quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic",
                             "weight_block_size": [128, 128])"),
                        "c")
            .n_routed_experts == 256);
  const auto said = [&](const std::string& keys) {
    try {
      model_from_json(with(keys), "c");
    } catch (const Error& e) {
      return std::string(e.what());
    }
    return std::string();
  };
  CHECK(said(R"("quant_method": "fp8", "weight_block_size": [64, 128])") ==
        "c: quantization_config.weight_block_size: [64,128] is not supported; only [128,128] is");
  CHECK(said(R"("quant_method": "fp8", "weight_block_size": [128, 128], "fmt": "e5m2")") ==
        "c: quantization_config.fmt: \"e5m2\" is not supported; only \"e4m3\" is");
  CHECK(said(R"("quant_method": "fp8", "weight_block_size": [128, 128], "scale_fmt": "x")") ==
        "c: quantization_config.scale_fmt: \"x\" is not supported; only \"ue8m0\" is");
}
