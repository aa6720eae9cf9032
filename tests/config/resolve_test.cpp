#include "lib/config/resolve.h"

#include <filesystem>
#include <set>

#include "lib/config/writer.h"
#include "tests/support/catch.h"

using namespace dstrain;

namespace {

constexpr const char* kWholeJob =
    "run: {dir: r}\n"
    "model: {vocab_size: 64, hidden_size: 32, num_hidden_layers: 4, num_attention_heads: 4, intermediate_size: 64}\n"
    "training: {steps: 10, sequence_length: 16, global_batch_size: 8, micro_batch_size: 2}\n";

std::string report(int ranks, const std::vector<std::string>& overrides, const std::string& added = "") {
  try {
    resolve(parse_config(system_files(), "job.yaml", kWholeJob + added, overrides), ranks);
    return "";
  } catch (const Error& e) {
    CHECK(e.code() == ExitCode::usage);
    return e.what();
  }
}

}  // namespace

TEST_CASE("each rule that joins keys has its own words, both places and legal neighbours") {
  CHECK(
      report(6, {}, "parallel: {tensor: 3, pipeline: 2}\n") ==
      "job.yaml:4:12: parallel.tensor: 3 does not divide model.num_attention_heads: 4 (job.yaml:2:64); did you mean 4 "
      "or 2?\n"
      "job.yaml:4:12: parallel.tensor: 3 does not divide model.intermediate_size: 64 (job.yaml:2:88); did you mean 4 "
      "or "
      "2?");
  struct Case {
    int ranks;
    std::vector<std::string> overrides;
    const char* expected;
  };
  const Case cases[] = {
      {1,
       {"precision.gradients=bfloat16", "training.global_batch_size=2"},
       "override 'precision.gradients=bfloat16': precision.gradients: bfloat16 has no meaning with precision.compute: "
       "float32 (default)"},
      {2,
       {"precision.gradients=bfloat16", "precision.compute=bfloat16"},
       "override 'precision.gradients=bfloat16': precision.gradients: bfloat16 would round the sum again with every "
       "micro-batch; a step must be one: training.global_batch_size: 8 (job.yaml:3:44) is more than parallel.data: 2 "
       "times training.micro_batch_size: 2 (job.yaml:3:66) = 4"},
      {3,
       {"parallel.pipeline=2"},
       "override 'parallel.pipeline=2': parallel.pipeline: 3 ranks cannot be shared out: parallel.tensor * context * "
       "pipeline: 1 * 1 * 2 = 2 does not divide 3; start 2 or 4 ranks"},
      {1,
       {"parallel.pipeline=2"},
       "override 'parallel.pipeline=2': parallel.pipeline: 1 ranks cannot be shared out: parallel.tensor * context * "
       "pipeline: 1 * 1 * 2 = 2 does not divide 1; start 2 ranks"},
      {4,
       {"parallel.data=2"},
       "override 'parallel.data=2': parallel.data: 2 times parallel.tensor * context * pipeline: 1 * 1 * 1 = 1 makes 2 "
       "ranks, but there are 4; start 2 ranks, or set it to 4"},
      {1,
       {"model.num_attention_heads=5"},
       "override 'model.num_attention_heads=5': model.num_attention_heads: 5 does not divide model.hidden_size: 32 "
       "(job.yaml:2:25); did you mean 8 or 4? Or give model.head_dim"},
      {1,
       {"model.head_dim=3"},
       "override 'model.head_dim=3': model.head_dim: a head of width 3 cannot be rotated; the rotary embedding needs "
       "an "
       "even one"},
      {1,
       {"model.num_attention_heads=32"},
       "override 'model.num_attention_heads=32': model.num_attention_heads: a head of width 1 cannot be rotated; the "
       "rotary embedding needs an even one"},
      {1,
       {"model.num_key_value_heads=3"},
       "override 'model.num_key_value_heads=3': model.num_key_value_heads: 3 does not divide "
       "model.num_attention_heads: "
       "4 (job.yaml:2:64); did you mean 4 or 2?"},
      {6,
       {"model.num_attention_heads=12", "model.head_dim=4", "model.num_key_value_heads=4", "parallel.tensor=6",
        "model.intermediate_size=96"},
       "override 'parallel.tensor=6': parallel.tensor: 6 neither divides nor is a multiple of "
       "model.num_key_value_heads: 4 (override 'model.num_key_value_heads=4'); did you mean 12 or 4?"},
      {8,
       {"parallel.pipeline=8"},
       "override 'parallel.pipeline=8': parallel.pipeline: 8 is more than model.num_hidden_layers: 4 (job.yaml:2:42)"},
      {1,
       {"model.hidden_act=gelu"},
       "override 'model.hidden_act=gelu': model.hidden_act: gelu is not an activation of model.type llama; silu is"},
      {1,
       {"model.type=gpt2", "model.hidden_act=silu"},
       "override 'model.hidden_act=silu': model.hidden_act: silu is not an activation of model.type gpt2; gelu_new, "
       "gelu_pytorch_tanh and gelu are"},
      {1,
       {"model.layer_norm_epsilon=0.1"},
       "override 'model.layer_norm_epsilon=0.1': model.layer_norm_epsilon: only model.type gpt2 has it, not "
       "model.type: "
       "llama (default)"},
      {1,
       {"model.intermediate_size=0"},
       "override 'model.intermediate_size=0': model.intermediate_size: missing; llama has no default"},
      {3,
       {},
       "job.yaml:3:44: training.global_batch_size: 8 is not a multiple of parallel.data * training.micro_batch_size: 3 "
       "* 2 "
       "= 6 (job.yaml:3:66); did you mean 12 or 6?"},
      {1,
       {"training.sequence_length=4096"},
       "override 'training.sequence_length=4096': training.sequence_length: 4096 is more than "
       "model.max_position_embeddings: 2048 (default)"},
      {1,
       {"lr_schedule.warmup_steps=11"},
       "override 'lr_schedule.warmup_steps=11': lr_schedule.warmup_steps: 11 is more than training.steps: 10 "
       "(job.yaml:3:12)"},
      {1,
       {"lr_schedule.type=wsd"},
       "job.yaml: lr_schedule.decay_steps: missing; wsd needs the number of steps in which lr falls "
       "(lr_schedule.decay_steps is the default)"},
      {1,
       {"lr_schedule.type=wsd", "lr_schedule.warmup_steps=6", "lr_schedule.decay_steps=5"},
       "override 'lr_schedule.decay_steps=5': lr_schedule.decay_steps: 5 and lr_schedule.warmup_steps: 6 (override "
       "'lr_schedule.warmup_steps=6') together are more than training.steps: 10 (job.yaml:3:12)"},
      {1,
       {"lr_schedule.decay_steps=5"},
       "override 'lr_schedule.decay_steps=5': lr_schedule.decay_steps: only wsd has decay steps, not lr_schedule.type: "
       "cosine (default)"},
      {1,
       {"lr_schedule.min_lr=0.5"},
       "override 'lr_schedule.min_lr=0.5': lr_schedule.min_lr: 0.5 is more than optimizer.lr: 0.001 (default)"},
      {1,
       {"eval.every=5"},
       "override 'eval.every=5': eval.every: there is nothing to evaluate on; data.eval names no file"},
      {1,
       {"data.train=[{path: a, weight: 1}, b.h5]"},
       "override 'data.train=[{path: a, weight: 1}, b.h5]': data.train: b.h5 has no weight, and other entries have "
       "one; give all entries a weight, or none"},
      {1,
       {"data.eval=[{path: a, weight: 1}]"},
       "override 'data.eval=[{path: a, weight: 1}]': data.eval: weights mix the samples of an evaluation; eval.samples "
       "must say how many they are"},
  };
  for (const Case& c : cases) CHECK(report(c.ranks, c.overrides) == c.expected);
}

TEST_CASE("what a DeepSeek model lacks or cannot be is said") {
  const auto said = [](const std::string& keys, int ranks = 1, const std::string& rest = "") {
    try {
      resolve(parse_config(system_files(), "j",
                           "run: {dir: r}\nmodel: {type: deepseek_v3, vocab_size: 64, hidden_size: 32, "
                           "num_hidden_layers: 4, num_attention_heads: 4, intermediate_size: 64" +
                               keys + "}\n" +
                               "training: {steps: 10, sequence_length: 16, global_batch_size: 8, "
                               "micro_batch_size: 2}\n" +
                               rest,
                           {}),
              ranks);
      return std::string();
    } catch (const Error& e) {
      return std::string(e.what());
    }
  };
  CHECK(said("") ==
        "j: model.kv_lora_rank: missing; deepseek_v3 has no default (model.kv_lora_rank is the default)\n"
        "j: model.n_routed_experts: missing; deepseek_v3 has no default (model.n_routed_experts is the default)\n"
        "j: model.moe_intermediate_size: missing; deepseek_v3 has no default (model.moe_intermediate_size is the "
        "default)\n"
        "j: model.num_experts_per_tok: missing; deepseek_v3 has no default (model.num_experts_per_tok is the default)");
  const std::string whole =
      ", kv_lora_rank: 8, n_routed_experts: 8, moe_intermediate_size: 6, num_experts_per_tok: 4, n_group: 4";
  CHECK(said(whole + ", topk_group: 2") == "");
  CHECK_THAT(said(whole),
             Catch::Matchers::Contains("model.num_experts_per_tok: 4 is more than the 2 experts of 1 groups"));
  CHECK_THAT(said(whole + ", topk_group: 5"),
             Catch::Matchers::Contains("model.topk_group: 5 is more than model.n_group: 4"));
  CHECK_THAT(said(whole + ", topk_group: 2, qk_rope_head_dim: 7"),
             Catch::Matchers::Contains("model.qk_rope_head_dim: 7 elements cannot be rotated in pairs"));
  CHECK_THAT(said(whole + ", topk_group: 2, qk_nope_head_dim: 250"), Catch::Matchers::Contains("at most 256"));
  CHECK_THAT(said(whole + ", topk_group: 2", 4, "parallel: {tensor: 4}\n"),
             Catch::Matchers::Contains("parallel.tensor: 4 does not divide model.moe_intermediate_size: 6"));
  CHECK_THAT(said(whole + ", topk_group: 2", 6, "parallel: {expert: 3}\n"),
             Catch::Matchers::Contains("parallel.expert: 3 does not divide model.n_routed_experts: 8"));
  CHECK_THAT(said(whole + ", topk_group: 2", 2, "parallel: {expert: 4}\n"),
             Catch::Matchers::Contains("parallel.expert: 4 does not divide parallel.data: 2"));
  CHECK_THAT(said(whole + ", topk_group: 2, first_k_dense_replace: 4", 2, "parallel: {expert: 2}\n"),
             Catch::Matchers::Contains("parallel.expert: 2 ranks have no experts to share"));
  CHECK_THAT(
      report(2, {"parallel.expert=2"}),
      Catch::Matchers::Contains("parallel.expert: 2 ranks have no experts to share: no layer of model.type: llama"));
  CHECK_THAT(said(whole + ", topk_group: 2, topk_method: greedy"),
             Catch::Matchers::Contains("model.topk_method: only model.type deepseek_v2 has it"));
  CHECK_THAT(report(1, {}, "moe: {bias_update_rate: 0.1}\n"),
             Catch::Matchers::Contains("moe.bias_update_rate: only model.type deepseek_v3 has it"));
}

TEST_CASE("resolve fills in what is derived") {
  const Config c = resolve(parse_config(system_files(), "job.yaml", kWholeJob, {"parallel.tensor=2"}), 4);
  CHECK(c.parallel.data == 2);
  CHECK(c.model.num_key_value_heads == 4);
  CHECK(c.model.head_dim == 8);
  CHECK(c.model.hidden_act == "silu");
  CHECK_FALSE(c.model.tie_word_embeddings);
  const Config g = resolve(parse_config(system_files(), "job.yaml", kWholeJob,
                                        {"model.type=gpt2", "model.intermediate_size=0", "model.hidden_size=36",
                                         "model.num_attention_heads=12", "parallel.tensor=3"}),
                           3);
  CHECK(g.model.intermediate_size == 144);
  CHECK(g.model.head_dim == 3);  // odd is fine without a rotary embedding
  CHECK(g.model.hidden_act == "gelu_new");
  CHECK(g.model.tie_word_embeddings);
  // A group of key-value heads may be shared by several tensor ranks.
  CHECK(report(4, {"model.num_key_value_heads=2", "parallel.tensor=4"}) == "");
}

TEST_CASE("every file in configs/ loads, resolves and survives being written out") {
  std::set<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(DSTRAIN_SOURCE_DIR "/configs")) {
    const std::string path = entry.path().string();
    INFO(path);
    names.insert(entry.path().filename().string());
    const Loaded loaded = load_config(system_files(), path, {});
    const ParallelConfig& p = loaded.config.parallel;
    const int ranks = static_cast<int>(std::max({std::int64_t{1}, p.data, p.expert}) * p.tensor * p.pipeline);
    const Config resolved = resolve(loaded, ranks);
    const std::string text = to_yaml(resolved);
    const Config again = resolve(parse_config(system_files(), "again.yaml", text, {}), ranks);
    CHECK(to_yaml(again) == text);
    CHECK(again.model.head_dim == resolved.model.head_dim);
    CHECK(again.model.num_key_value_heads == resolved.model.num_key_value_heads);
  }
  CHECK(names.count("quickstart.yaml") == 1);
}

TEST_CASE("print shows where each value came from") {
  const Loaded loaded = parse_config(system_files(), "job.yaml", kWholeJob, {"optimizer.lr=0.5"});
  const std::string text = print_config(resolve(loaded, 2), loaded);
  const auto line = [&](const std::string& key) {
    const auto at = text.find("  " + key + ": ");
    REQUIRE(at != std::string::npos);
    return text.substr(at, text.find('\n', at) - at);
  };
  CHECK(line("dir") == "  dir: \"r\"                                  # job.yaml:1:7");
  CHECK(line("lr") == "  lr: 0.5                                   # override 'optimizer.lr=0.5'");
  CHECK(line("head_dim") == "  head_dim: 8                               # derived");
  CHECK(line("eps") == "  eps: 1.0e-08                              # default");
  CHECK(to_yaml(parse_config(system_files(), "x", text, {}).config) == to_yaml(resolve(loaded, 2)));
}

TEST_CASE("explain prints type, range, default and meaning") {
  CHECK(explain("optimizer.lr") == "optimizer.lr\n  peak learning rate\n  number in [0, 1000]; default 0.001\n");
  CHECK(explain("model.rms_norm_eps") ==
        "model.rms_norm_eps\n  epsilon of RMSNorm\n  number in [1e-30, 1]; default 1.0e-06\n  only for model.type "
        "llama, deepseek_v2, deepseek_v3\n");
  CHECK(explain("observe") ==
        "observe: what else a run writes for people to look at\n"
        "observe.tensorboard\n"
        "  write every metric to event files under tensorboard/ in the run directory\n"
        "  true or false; default false\n"
        "observe.expert_tokens_every\n"
        "  steps between lines of the metrics that hold the tokens of every single "
        "expert; 0: never\n"
        "  integer in [0, 1000000000000]; default 100\n"
        "  only for model.type deepseek_v2, deepseek_v3\n");
  CHECK_THAT(explain("guard"),
             Catch::Matchers::Contains("guard.on_spike\n") &&
                 Catch::Matchers::Contains("  one of abort, skip, rollback; default \"abort\"\n") &&
                 Catch::Matchers::Contains("  one of warn, skip, rollback, abort; default \"warn\"\n"));
  CHECK_THROWS_WITH(explain("optimizer.rl"), "optimizer.rl: unknown key; did you mean 'optimizer.lr'?");
}
