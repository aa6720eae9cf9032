#include "lib/model/params.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <numeric>
#include <set>

#include "lib/core/arena.h"
#include "lib/model/build.h"
#include "tests/support/catch.h"

using namespace dstrain;

namespace {

struct Stored {
  Param param;
  Buffer memory;
  explicit Stored(Param p) : param(std::move(p)) {
    memory = Buffer("test", Device::cpu, static_cast<std::size_t>(param.numel()) * sizeof(float));
    param.master = Tensor(memory.data(), DType::f32, Device::cpu, param.shape);
  }
};

}  // namespace

TEST_CASE("the vocabulary is padded to 128 rows a tensor rank", "[model]") {
  CHECK(padded_vocabulary(4096, 1) == 4096);
  CHECK(padded_vocabulary(331, 1) == 384);
  CHECK(padded_vocabulary(331, 3) == 384);
  CHECK(padded_vocabulary(331, 2) == 512);
  CHECK(padded_vocabulary(50257, 1) == 50304);
}

TEST_CASE("key-value heads are cut, or shared by neighbours of whom one owns", "[model]") {
  const auto at = [](Index heads, int rank, int size) {
    const KvShard s = kv_shard(heads, {rank, size});
    return std::array<Index, 4>{s.first, s.heads, s.replicas, s.owned};
  };
  CHECK(at(8, 3, 4) == std::array<Index, 4>{6, 2, 1, 1});
  CHECK(at(2, 0, 4) == std::array<Index, 4>{0, 1, 2, 1});
  CHECK(at(2, 1, 4) == std::array<Index, 4>{0, 1, 2, 0});
  CHECK(at(2, 3, 4) == std::array<Index, 4>{1, 1, 2, 0});
  CHECK_THROWS_AS(kv_shard(3, {0, 2}), Error);
}

TEST_CASE("initial values do not depend on how a tensor is cut, merged or transposed", "[model]") {
  constexpr Index rows = 6, columns = 5;
  const auto whole = [&](bool transposed) {
    Stored s(weight_param({{"w", rows, 0, rows}}, {columns, 0, columns}, transposed, 0.5f));
    ThreadPool pool(2);
    initialize(s.param, 3, s.param.master.as<float>(), pool);
    std::vector<float> file(rows * columns);
    gather_piece(s.param, s.param.pieces[0], s.param.master.as<float>(), file.data());
    return file;
  };
  const std::vector<float> reference = whole(false);
  CHECK(std::set<float>(reference.begin(), reference.end()).size() == reference.size());
  // In the file's order the same elements, though the file is (columns, rows) there.
  const std::vector<float> turned = whole(true);
  CHECK(turned == reference);

  // Rows 2..4 below another tensor, columns 1..3, padded.
  Stored part(weight_param({{"other", 4, 0, 4}, {"w", rows, 2, 3}}, {columns, 1, 3}, false, 0.5f, 2));
  ThreadPool pool(1);
  initialize(part.param, 3, part.param.master.as<float>(), pool);
  CHECK(part.param.shape == Shape{9, 3});
  const float* m = part.param.master.as<float>();
  for (Index i = 0; i < 3; ++i)
    for (Index j = 0; j < 3; ++j)
      CHECK(m[(4 + i) * 3 + j] == reference[static_cast<std::size_t>((2 + i) * columns + 1 + j)]);
  for (Index i = 21; i < 27; ++i) CHECK(m[i] == 0);
}

TEST_CASE("initial values are normal with the standard deviation asked for", "[model]") {
  constexpr Index n = 200000;
  Stored s(weight_param({{"w", n / 100, 0, n / 100}}, {100, 0, 100}, false, 0.02f));
  ThreadPool pool(2);
  initialize(s.param, 1, s.param.master.as<float>(), pool);
  const float* v = s.param.master.as<float>();
  double sum = 0, squares = 0;
  for (Index i = 0; i < n; ++i) sum += v[i], squares += static_cast<double>(v[i]) * v[i];
  // Five standard errors of the mean and of the variance.
  CHECK(std::fabs(sum / n) < 5 * 0.02 / std::sqrt(static_cast<double>(n)));
  CHECK(std::fabs(squares / n / 4e-4 - 1) < 5 * std::sqrt(2.0 / n));
}

TEST_CASE("scatter is the inverse of gather", "[model]") {
  Stored s(weight_param({{"a", 4, 0, 4}, {"b", 8, 2, 3}}, {7, 0, 7}, true, 1.0f, 1));
  float* m = s.param.master.as<float>();
  std::iota(m, m + s.param.numel(), 0.0f);
  std::vector<float> copy(static_cast<std::size_t>(s.param.numel()), -1.0f);
  for (const Piece& p : s.param.pieces) {
    std::vector<float> file(static_cast<std::size_t>(p.extent.numel()));
    gather_piece(s.param, p, m, file.data());
    scatter_piece(s.param, p, file.data(), copy.data());
  }
  for (Index i = 0; i < 49; ++i) CHECK(copy[static_cast<std::size_t>(i)] == m[i]);
  for (Index i = 49; i < 56; ++i) CHECK(copy[static_cast<std::size_t>(i)] == -1);  // padding belongs to no piece
}

TEST_CASE("over the ranks of a mesh each element of each tensor is owned once", "[model]") {
  ModelConfig model;
  model.vocab_size = 331;
  model.hidden_size = 24;
  model.num_hidden_layers = 3;
  model.num_attention_heads = 4;
  model.num_key_value_heads = 2;
  model.head_dim = 6;
  model.intermediate_size = 20;
  model.max_position_embeddings = 16;
  for (const bool tied : {false, true})
    for (const char* type : {"llama", "gpt2"})
      for (const int tensor : {1, 2, 4})
        for (const int stages : {1, 3}) {
          model.type = type;
          model.tie_word_embeddings = tied;
          if (model.type == "gpt2")
            model.num_key_value_heads = 4;
          else
            model.num_key_value_heads = 2;
          std::map<std::string, std::vector<int>> owners;
          std::map<std::string, Shape> shapes;
          const auto ranges = partition(3, 1, 0, stages);
          for (int stage = 0; stage < stages; ++stage)
            for (int rank = 0; rank < tensor; ++rank)
              build_stage(model,
                          {ranges[static_cast<std::size_t>(stage)], stage == 0, stage == stages - 1, {rank, tensor}})
                  .visit([&](Param& param) {
                    for (const Piece& p : param.pieces) {
                      auto& count = owners[p.name];
                      count.resize(static_cast<std::size_t>(p.global.numel()));
                      CHECK(shapes.emplace(p.name, p.global).first->second == p.global);
                      if (!p.owned) continue;
                      const bool matrix = p.global.rank() == 2;
                      for (Index i = 0; i < p.extent[0]; ++i)
                        for (Index j = 0; j < (matrix ? p.extent[1] : 1); ++j)
                          ++count[static_cast<std::size_t>(matrix ? (p.offset[0] + i) * p.global[1] + p.offset[1] + j
                                                                  : p.offset[0] + i)];
                    }
                  });
          for (const auto& [name, count] : owners) {
            INFO(name << ", tensor " << tensor << ", stages " << stages);
            CHECK(std::all_of(count.begin(), count.end(), [](int n) { return n == 1; }));
          }
        }
}

TEST_CASE("DeepSeek-V3's module of multi-token prediction has the parameters of its files", "[model]") {
  ModelConfig model;
  model.type = "deepseek_v3";
  model.vocab_size = 129280;
  model.hidden_size = 7168;
  model.num_hidden_layers = 61;
  model.num_attention_heads = model.num_key_value_heads = 128;
  model.head_dim = 192;
  model.intermediate_size = 18432;
  model.q_lora_rank = 1536;
  model.kv_lora_rank = 512;
  model.first_k_dense_replace = 3;
  model.moe_intermediate_size = 2048;
  model.n_routed_experts = 256;
  model.num_experts_per_tok = 8;
  model.n_group = 8;
  model.topk_group = 4;
  model.num_nextn_predict_layers = 1;
  for (const int tensor : {1, 4}) {
    Index module = 0, all = 0, biases = 0;
    for (int rank = 0; rank < tensor; ++rank)
      build_stage(model, {.layers = {0, 61}, .shard = {rank, tensor}, .mtp_depths = 1}).visit([&](Param& param) {
        for (const Piece& p : param.pieces) {
          if (!p.owned) continue;
          all += p.extent.numel();
          if (p.name.starts_with("model.layers.61.")) module += p.extent.numel();
          if (p.name.ends_with("e_score_correction_bias")) biases += p.extent.numel();
          if (p.name == "model.layers.61.eh_proj.weight") CHECK(p.global == Shape{7168, 14336});
        }
      });
    CHECK(module == 11610068224);
    CHECK(all - module == 671026404352 + 58 * 256);
    CHECK(biases == 59 * 256);
  }
}
