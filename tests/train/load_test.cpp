// The load of experts that a step reports, and what a run writes of it.

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>

#include "lib/observe/series.h"
#include "tests/support/catch.h"
#include "tests/support/devices.h"
#include "tests/train/tiny_run.h"

using namespace dstrain;
using namespace dstrain::test;

TEST_CASE("every expert's tokens are those of one rank on every mesh, in the model's order", "[load]") {
  for (const TinyModel& model : tiny_models()) {
    const Config one = tiny_job(model.yaml, 1, 1, 1, 8);
    if (!one.model.deepseek()) continue;
    const TinyResult reference = run_tiny_threads(one, 1);
    const auto& layers = reference.expert_tokens.at(0);
    REQUIRE(static_cast<Index>(layers.size()) ==
            one.model.num_hidden_layers + one.model.num_nextn_predict_layers - one.model.first_k_dense_replace);
    for (const auto& tokens : layers) {
      REQUIRE(static_cast<Index>(tokens.size()) == one.model.n_routed_experts);
      double all = 0;
      for (const float n : tokens) all += static_cast<double>(n);
      CHECK(all == static_cast<double>(kSamples * kLength * one.model.num_experts_per_tok));
    }
    // No two alike, so that their order shows.
    for (std::size_t i = 1; i < layers.size(); ++i) CHECK(layers[i] != layers[i - 1]);
    for (const std::string& device : test_devices())
      for (const auto& [data, tensor, pipeline] :
           {std::array{2, 1, 1}, {1, 1, 5}, {1, 1, 8}, {2, 1, 2}, {1, 4, 2}, {1, 3, 2}}) {
        if (!fits(model, tensor, pipeline)) continue;
        INFO(model.name << " on " << device << ": data " << data << ", tensor " << tensor << ", pipeline " << pipeline);
        const TinyResult ours =
            run_tiny_threads(tiny_job(model.yaml, data, tensor, pipeline, 3, {"run.device=" + device}), 1);
        // Rounding may decide between two experts for a row or two.
        REQUIRE(ours.expert_tokens.at(0).size() == layers.size());
        for (std::size_t i = 0; i < layers.size(); ++i) {
          float off = 0;
          for (std::size_t e = 0; e < layers[i].size(); ++e)
            off += std::fabs(ours.expert_tokens[0][i][e] - layers[i][e]);
          CHECK(off <= 4);
        }
      }
  }
}

TEST_CASE("a run writes the load of each mixture, and every expert's tokens now and then", "[load]") {
  const TemporaryDirectory directory;
  write_tokens(directory / "train", 600, 1);
  for (const std::size_t m : {std::size_t{4}, std::size_t{5}}) {
    const TinyModel& model = tiny_models()[m];
    const std::string run = directory / std::to_string(m);
    train_tiny(
        tiny_run_yaml(model.yaml, directory / ".", run), 2,
        {"eval.every=0", "data.eval=[]", "parallel.pipeline=2", "parallel.data=1", "observe.expert_tokens_every=5"});
    std::ifstream in(run + "/metrics.jsonl");
    Index steps = 0;
    for (std::string line; std::getline(in, line);) {
      const auto json = nlohmann::json::parse(line);
      if (!json.contains("loss")) continue;
      ++steps;
      const std::vector<double> load = json["expert_load"];
      CHECK(load.size() == (m == 4 ? 4 : 2));
      CHECK(std::fabs(json["expert_load_max"].get<double>() - *std::max_element(load.begin(), load.end())) <= 5e-4);
      CHECK(json.contains("expert_tokens") == (steps % 5 == 0));
      if (steps % 5 != 0) continue;
      const std::vector<std::vector<Index>> tokens = json["expert_tokens"];
      REQUIRE(tokens.size() == load.size());
      for (std::size_t i = 0; i < tokens.size(); ++i) {
        Index all = 0;
        for (const Index n : tokens[i]) all += n;
        CHECK(all == kSamples * kLength * 2);
        const double most = static_cast<double>(*std::max_element(tokens[i].begin(), tokens[i].end()));
        CHECK(std::fabs(load[i] - most * static_cast<double>(tokens[i].size()) / static_cast<double>(all)) <= 5e-4);
      }
    }
    CHECK(steps == 12);
    // Read back for the report: a line a mixture.
    const auto series = read_metrics(system_files(), run + "/metrics.jsonl");
    CHECK(series.at("expert_load.1").values.size() == 12);
    CHECK_FALSE(series.contains("expert_load." + std::to_string(m == 4 ? 4 : 2)));
    CHECK_FALSE(series.contains("expert_tokens.0"));
  }
}
