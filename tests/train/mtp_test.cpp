// Multi-token prediction: what is predicted, its weight in the loss, and that it leaves the model's own loss alone.
// Its numbers against PyTorch are tests/golden/deepseek_v3_mtp_tiny's; its meshes mesh_test.cpp's.

#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "lib/layers/host_batch.h"
#include "tests/support/catch.h"
#include "tests/support/devices.h"
#include "tests/train/tiny_run.h"

using namespace dstrain;
using namespace dstrain::test;

namespace {

// Dense layers, mixtures of experts and two modules, whose own layers are mixtures too.
constexpr const char* kModel =
    "{ type: deepseek_v3, vocab_size: 331, hidden_size: 24, num_hidden_layers: 4, num_attention_heads: 4, "
    "intermediate_size: 40, q_lora_rank: 10, kv_lora_rank: 12, qk_nope_head_dim: 6, qk_rope_head_dim: 4, "
    "v_head_dim: 5, first_k_dense_replace: 2, moe_intermediate_size: 8, n_routed_experts: 6, num_experts_per_tok: 2, "
    "num_nextn_predict_layers: 2, initializer_range: 0.1 }";

std::vector<nlohmann::json> lines_of(const std::string& run) {
  std::vector<nlohmann::json> lines;
  std::ifstream in(run + "/metrics.jsonl");
  for (std::string line; std::getline(in, line);)
    if (nlohmann::json json = nlohmann::json::parse(line); json.contains("loss")) lines.push_back(json);
  return lines;
}

}  // namespace

TEST_CASE("targets further on stay within the sample and its document", "[mtp]") {
  constexpr Index kB = 3, kT = 12, kDepths = 3;
  HostBatch host(kB, kT);
  host.predict_further(kDepths);
  std::vector<int> document(static_cast<std::size_t>(kB * kT));
  for (Index r = 0; r < kB * kT; ++r) {
    const auto i = static_cast<std::size_t>(r);
    host.targets[i] = static_cast<std::int32_t>(100 + r);
    host.loss_weights[i] = r % 5 == 3 ? 0.0f : 1.0f;
    // Sample 0 is one document; sample 1 ends one after 4 and after 9 tokens; sample 2 after each token.
    const Index t = r % kT, begin = r / kT == 0 ? 0 : r / kT == 2 ? t : t < 4 ? 0 : t < 9 ? 4 : 9;
    document[i] = static_cast<int>(r / kT * 100 + begin);
    host.positions[i] = static_cast<std::int32_t>(t - begin);
  }
  const Batch batch = host.view();
  std::vector<double> sums(kDepths);
  for (Index k = 1; k <= kDepths; ++k)
    for (Index r = 0; r < kB * kT; ++r) {
      const auto at = static_cast<std::size_t>((k - 1) * kB * kT + r);
      const Index from = r + k;
      const bool same =
          from < kB * kT && document[static_cast<std::size_t>(from)] == document[static_cast<std::size_t>(r)];
      const float weight = same ? host.loss_weights[static_cast<std::size_t>(from)] : 0.0f;
      INFO("depth " << k << ", row " << r);
      CHECK(host.mtp_weights[at] == weight);
      if (r % kT + k < kT) CHECK(host.mtp_targets[at] == 100 + from);
      sums[static_cast<std::size_t>(k - 1)] += static_cast<double>(weight);
    }
  CHECK(mtp_tokens({&batch, 1}) == sums);
}

TEST_CASE("the weight 0 leaves the model's own losses as they are without, to the bit", "[mtp]") {
  for (const std::string& device : test_devices())
    for (const char* tied : {"false", "true"})
      for (const char* compute : {"float32", "bfloat16"}) {
        CAPTURE(device, tied, compute);
        const auto run = [&](const std::vector<std::string>& more) {
          std::vector<std::string> overrides{"run.device=" + device, std::string("precision.compute=") + compute,
                                             std::string("model.tie_word_embeddings=") + tied};
          overrides.insert(overrides.end(), more.begin(), more.end());
          return run_tiny_threads(tiny_job(kModel, 1, 1, 1, 8, overrides), 20);
        };
        const TinyResult without = run({"model.num_nextn_predict_layers=0"});
        const TinyResult zero = run({"mtp.loss_weight=0"}), some = run({"mtp.loss_weight=0.3"});
        CHECK(zero.losses == without.losses);
        CHECK(some.losses != without.losses);
        // What is not trained starts and stays where a uniform guess is.
        CHECK(std::fabs(zero.mtp_losses.front() - std::log(331.0)) < 0.3);
        for (const auto& [name, weights] : without.weights) {
          INFO(name);
          CHECK(zero.weights.at(name).values == weights.values);
        }
      }
}

TEST_CASE("gradients are the model's own plus the weight times the further tokens'", "[mtp]") {
  for (const std::string& device : test_devices())
    for (const char* input : {"post_norm", "pre_norm"}) {
      CAPTURE(device, input);
      const Config config = tiny_job(kModel, 1, 1, 1, 8, {"run.device=" + device, std::string("mtp.input=") + input});
      run_threads(1, [&](World& world) {
        const Device where = run_device(config);
        use_device(config, world, where);
        const auto engine = make_engine(config, world, Mesh(mesh_sizes(config.parallel)), where, 1);
        engine->initialize(config.run.seed);
        const TinyData data(config, 0, 0);
        const auto gradients = [&](double weight) {
          engine->set_mtp_loss_weight(weight);
          engine->gradients(data.batches(), data.valid(), false);
          return gather_tensors(engine->stage().model(), [&](const Param& p) { return engine->gradient(p); });
        };
        // Three times the first: on a GPU passes are recorded by then, with the weight in them.
        gradients(0);
        gradients(0);
        const auto zero = gradients(0), one = gradients(1), some = gradients(0.25);
        for (const auto& [name, at_zero] : zero) {
          if (name.ends_with("e_score_correction_bias")) continue;
          NamedTensor expected = at_zero;
          for (std::size_t i = 0; i < expected.values.size(); ++i)
            expected.values[i] += 0.25f * (one.at(name).values[i] - at_zero.values[i]);
          INFO(name);
          CHECK(relative_error(some.at(name), expected) < 4e-5);
          if (name.find("layers.4.") != name.npos) CHECK(relative_error(at_zero, one.at(name)) == 1.0);  // it is 0
        }
      });
    }
}

TEST_CASE("a run writes the further tokens' loss, changes its weight after some tokens, and resumes to the bit",
          "[mtp]") {
  const TemporaryDirectory directory;
  write_tokens(directory / "train", 600, 1);
  write_tokens(directory / "eval", 200, 2);
  const auto train = [&](const std::string& name, const std::vector<std::string>& more) {
    const std::string run = directory / name;
    std::vector<std::string> overrides{"eval.every=0", "mtp.loss_weight=0.4"};
    overrides.insert(overrides.end(), more.begin(), more.end());
    const ExitCode code = train_tiny(tiny_run_yaml(kModel, directory / ".", run), 2, overrides);
    CHECK(code == ExitCode::ok);
    return lines_of(run);
  };
  const auto constant = train("constant", {"parallel.pipeline=2", "parallel.data=1"});
  REQUIRE(constant.size() == 12);
  // The fourth step begins with so many tokens.
  const auto tokens = constant.at(2)["tokens"].get<Index>();
  const std::vector<std::string> late{format("mtp.change_after_tokens={}", tokens), "mtp.loss_weight_after=0.1",
                                      "parallel.pipeline=2", "parallel.data=1"};
  const auto changed = train("changed", late);
  REQUIRE(changed.size() == 12);
  for (std::size_t i = 0; i < 12; ++i) {
    INFO("step " << i + 1);
    // The weight of step 4 shows in its gradient, and in the loss after it.
    CHECK((changed[i]["loss"] == constant[i]["loss"]) == (i <= 3));
    CHECK((changed[i]["grad_norm"] == constant[i]["grad_norm"]) == (i <= 2));
    CHECK(changed[i]["mtp_loss"].get<double>() > 0);
  }
  CHECK(changed.back()["mtp_loss"].get<double>() < changed.front()["mtp_loss"].get<double>());
  // Stopped in between and gone on with, by one rank then, under another layout.
  auto first = late, second = std::vector<std::string>{late[0], late[1]};
  first.insert(first.end(), {"training.steps=6", "lr_schedule.type=constant", "lr_schedule.min_lr=0"});
  second.insert(second.end(), {"lr_schedule.type=constant", "lr_schedule.min_lr=0", "parallel.data=2"});
  train("resumed", first);
  const auto resumed = train("resumed", second);
  second.erase(second.end() - 1);
  second.insert(second.end(), {"parallel.pipeline=2", "parallel.data=1"});
  const auto whole = train("whole", second);
  REQUIRE(resumed.size() == 12);
  for (std::size_t i = 0; i < 12; ++i) {
    INFO("step " << i + 1);
    CHECK(std::fabs(resumed[i]["loss"].get<double>() - whole[i]["loss"].get<double>()) < 1e-5);
    CHECK(std::fabs(resumed[i]["mtp_loss"].get<double>() - whole[i]["mtp_loss"].get<double>()) < 1e-5);
  }
  // Modules are saved once, by their own names; embedding and head under the model's.
  const auto saved = checkpoint_tensors(directory / "resumed", 12);
  CHECK(saved.contains("weight/model.layers.4.eh_proj.weight"));
  CHECK(saved.contains("weight/model.layers.5.shared_head.norm.weight"));
  CHECK_FALSE(saved.contains("weight/model.layers.4.embed_tokens.weight"));
  CHECK_FALSE(saved.contains("weight/model.layers.4.shared_head.head.weight"));
  // Another input is another model.
  second.push_back("mtp.input=pre_norm");
  second.push_back("training.steps=13");
  CHECK_THROWS_WITH(train("whole", second), Catch::Matchers::Contains("another model"));
}

TEST_CASE("every expert's bias moves, in the model's layers and in the modules'", "[mtp]") {
  for (const std::string& device : test_devices())
    for (const auto& [data, tensor, pipeline] : {std::array{1, 1, 1}, {2, 2, 2}, {1, 1, 4}}) {
      CAPTURE(device, data, tensor, pipeline);
      // An odd number of steps of one size each: none ends at 0.
      const TinyResult r = run_tiny_threads(
          tiny_job(kModel, data, tensor, pipeline, 3, {"run.device=" + device, "moe.bias_update_rate=0.015625"}), 5);
      int layers = 0;
      for (const auto& [name, weights] : r.weights) {
        if (!name.ends_with("e_score_correction_bias")) continue;
        ++layers;
        INFO(name);
        REQUIRE(weights.values.size() == 6);
        for (const float bias : weights.values) {
          CHECK(std::fabs(bias) >= 0.015625f);
          CHECK(std::remainder(bias, 0.015625f) == 0.0f);
        }
      }
      CHECK(layers == 4);
    }
}

TEST_CASE("of real text the second token is learnt too", "[mtp]") {
  std::ostringstream text;
  for (const char* page : {"architecture", "reliability", "data", "tokenizer"})
    text << std::ifstream(std::string(DSTRAIN_SOURCE_DIR) + "/docs/" + page + ".md").rdbuf();
  REQUIRE(text.str().size() > 30000);
  const TemporaryDirectory directory;
  TokenWriter writer(system_files(), directory / "text",
                     {.tokenizer_hash = 1, .vocab_size = 256, .end_of_document = 0});
  std::vector<std::int32_t> bytes;
  for (const char c : text.str()) bytes.push_back(static_cast<unsigned char>(c));
  const auto text_size = static_cast<double>(bytes.size());
  writer.add(bytes);
  writer.finish();
  const std::string run = directory / "run";
  train_tiny(tiny_run_yaml(kModel, directory / ".", run), 1,
             {"model.vocab_size=256", "model.hidden_size=48", "eval.every=0", "data.eval=[]",
              format("data.train=['{}']", directory / "text-*.h5"), "training.steps=120", "training.sequence_length=32",
              "training.global_batch_size=8", "model.num_nextn_predict_layers=1", "model.max_position_embeddings=32",
              "optimizer.lr=6.0e-3", "training.micro_batch_size=8"});
  const auto lines = lines_of(run);
  REQUIRE(lines.size() == 120);
  const double first = lines.front()["mtp_loss"], last = lines.back()["mtp_loss"];
  CHECK(std::fabs(first - std::log(256.0)) < 0.3);
  // More than how frequent each byte is.
  std::map<std::int32_t, double> counts;
  for (const std::int32_t b : bytes) counts[b] += 1;
  double entropy = 0;
  for (const auto& [byte, n] : counts) entropy -= n / text_size * std::log(n / text_size);
  CHECK(last < entropy - 0.1);
  CHECK(lines.back()["loss"].get<double>() < entropy - 0.1);
}
