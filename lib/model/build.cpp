#include "lib/model/build.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

#include "lib/layers/attention.h"
#include "lib/layers/embedding.h"
#include "lib/layers/mlp.h"
#include "lib/model/params.h"

namespace dstrain {

namespace {

// This rank's rows of the embedding or head: the padded vocabulary cut evenly, the real rows of it.
struct VocabularyShard {
  Index first, rows, valid;
};
VocabularyShard vocabulary_shard(Index vocabulary, TensorShard shard) {
  const Index rows = padded_vocabulary(vocabulary, shard.size) / shard.size;
  const Index first = rows * shard.rank;
  return {first, rows, std::clamp<Index>(vocabulary - first, 0, rows)};
}

Param vocabulary_param(const std::string& name, const ModelConfig& m, const StagePlace& place, bool owned) {
  const VocabularyShard v = vocabulary_shard(m.vocab_size, place.shard);
  const bool split_tie = m.tie_word_embeddings && !(place.first && place.last);
  return weight_param({{.name = name,
                        .file_rows = m.vocab_size,
                        .begin = std::min(v.first, m.vocab_size),
                        .rows = v.valid,
                        .reduce = split_tie ? PreReduce::embedding : PreReduce::none,
                        .owned = owned}},
                      {m.hidden_size, 0, m.hidden_size}, false, static_cast<float>(m.initializer_range),
                      v.rows - v.valid);
}

ColumnPart whole_columns(Index n) { return {n, 0, n}; }
ColumnPart shard_columns(Index n, TensorShard shard) { return {n, n / shard.size * shard.rank, n / shard.size}; }

// Names, shapes and norms of one family. Everything that differs between model types is in these two classes.
class Family {
 public:
  Family(const ModelConfig& model, TensorShard shard) : m(model), s(shard), kv(kv_shard(m.num_key_value_heads, s)) {}
  virtual ~Family() = default;
  virtual std::string embedding_name() const = 0;
  virtual std::string head_name() const = 0;
  virtual std::optional<Param> positions() const = 0;
  virtual std::unique_ptr<Layer> attention(Index layer, Index slot) const = 0;
  virtual std::unique_ptr<Layer> mlp(Index layer) const = 0;
  virtual Norm final_norm() const = 0;

 protected:
  float std_dev() const { return static_cast<float>(m.initializer_range); }
  AttentionSpec attention_spec(Index layer, Index slot) const {
    const Index heads = m.num_attention_heads / s.size;
    return {.heads = heads,
            .kv_heads = kv.heads,
            .first_head = heads * s.rank,
            .head_dim = m.head_dim,
            .layer = layer,
            .cache_slot = slot};
  }
  // [q | k | v] rows of this rank, each part from the tensor and first row that `place` says.
  struct Source {
    std::string name;
    Index file_rows;
    Index first;
  };
  std::vector<RowPart> qkv_parts(const Source& q, const Source& k, const Source& v) const {
    const Index d = m.head_dim, heads = m.num_attention_heads / s.size;
    const PreReduce reduce = kv.replicas > 1 ? PreReduce::kv_replica : PreReduce::none;
    std::vector<RowPart> parts{{q.name, q.file_rows, q.first + heads * s.rank * d, heads * d}};
    for (const Source* source : {&k, &v})
      parts.push_back({source->name, source->file_rows, source->first + kv.first * d, kv.heads * d, reduce, kv.owned});
    return parts;
  }

  const ModelConfig& m;
  TensorShard s;
  KvShard kv;
};

class Llama final : public Family {
 public:
  using Family::Family;
  std::string embedding_name() const override { return "model.embed_tokens.weight"; }
  std::string head_name() const override { return "lm_head.weight"; }
  std::optional<Param> positions() const override { return {}; }

  std::unique_ptr<Layer> attention(Index layer, Index slot) const override {
    AttentionSpec spec = attention_spec(layer, slot);
    for (Index i = 0; i < m.head_dim / 2; ++i)
      spec.inverse_frequencies.push_back(static_cast<float>(
          1.0 / std::pow(m.rope_theta, 2.0 * static_cast<double>(i) / static_cast<double>(m.head_dim))));
    const std::string p = prefix(layer) + "self_attn.";
    const Index width = m.num_attention_heads * m.head_dim, kv_width = m.num_key_value_heads * m.head_dim;
    const auto parts = [&](const std::string& leaf) {
      return qkv_parts({p + "q_proj." + leaf, width, 0}, {p + "k_proj." + leaf, kv_width, 0},
                       {p + "v_proj." + leaf, kv_width, 0});
    };
    std::optional<Param> qkv_bias, out_bias;
    if (m.attention_bias) {
      qkv_bias = vector_param(parts("bias"), Init::zeros);
      out_bias = vector_param({whole_rows(p + "o_proj.bias", m.hidden_size, s)}, Init::zeros);
    }
    return std::make_unique<Attention>(
        spec, norm(prefix(layer) + "input_layernorm.weight"),
        Linear(Split::column, weight_param(parts("weight"), whole_columns(m.hidden_size), false, std_dev()), qkv_bias),
        Linear(Split::row, weight_param({full_rows(p + "o_proj.weight")}, shard_columns(width, s), false, std_dev()),
               out_bias));
  }

  std::unique_ptr<Layer> mlp(Index layer) const override {
    const std::string p = prefix(layer) + "mlp.";
    const auto parts = [&](const std::string& leaf) {
      return std::vector<RowPart>{shard_rows(p + "gate_proj." + leaf, m.intermediate_size, s),
                                  shard_rows(p + "up_proj." + leaf, m.intermediate_size, s)};
    };
    std::optional<Param> up_bias, down_bias;
    if (m.mlp_bias) {
      up_bias = vector_param(parts("bias"), Init::zeros);
      down_bias = vector_param({whole_rows(p + "down_proj.bias", m.hidden_size, s)}, Init::zeros);
    }
    return std::make_unique<Mlp>(
        layer, Activation::swiglu, 0.0f, norm(prefix(layer) + "post_attention_layernorm.weight"),
        Linear(Split::column, weight_param(parts("weight"), whole_columns(m.hidden_size), false, std_dev()), up_bias),
        Linear(
            Split::row,
            weight_param({full_rows(p + "down_proj.weight")}, shard_columns(m.intermediate_size, s), false, std_dev()),
            down_bias));
  }

  Norm final_norm() const override { return norm("model.norm.weight"); }

 private:
  static std::string prefix(Index layer) { return format("model.layers.{}.", layer); }
  RowPart full_rows(const std::string& name) const { return {name, m.hidden_size, 0, m.hidden_size}; }
  Norm norm(const std::string& name) const {
    return {static_cast<float>(m.rms_norm_eps), vector_param({whole_rows(name, m.hidden_size, s)}, Init::ones)};
  }
};

// Its linears are stored (in, out), and q, k, v in one tensor.
class Gpt2 final : public Family {
 public:
  using Family::Family;
  std::string embedding_name() const override { return "transformer.wte.weight"; }
  std::string head_name() const override { return "lm_head.weight"; }
  std::optional<Param> positions() const override {
    return weight_param({whole_rows("transformer.wpe.weight", m.max_position_embeddings, s)},
                        whole_columns(m.hidden_size), false, std_dev());
  }

  std::unique_ptr<Layer> attention(Index layer, Index slot) const override {
    AttentionSpec spec = attention_spec(layer, slot);
    spec.attention_dropout = static_cast<float>(m.attn_pdrop);
    spec.residual_dropout = static_cast<float>(m.resid_pdrop);
    const std::string p = prefix(layer) + "attn.";
    const Index c = m.hidden_size;
    const auto parts = [&](const std::string& leaf) {
      const std::string name = p + "c_attn." + leaf;
      return qkv_parts({name, 3 * c, 0}, {name, 3 * c, c}, {name, 3 * c, 2 * c});
    };
    return std::make_unique<Attention>(
        spec, norm(prefix(layer) + "ln_1"),
        Linear(Split::column, weight_param(parts("weight"), whole_columns(c), true, std_dev()),
               vector_param(parts("bias"), Init::zeros)),
        projection(p + "c_proj", c));
  }

  std::unique_ptr<Layer> mlp(Index layer) const override {
    const std::string p = prefix(layer) + "mlp.";
    return std::make_unique<Mlp>(
        layer, m.hidden_act == "gelu" ? Activation::gelu_erf : Activation::gelu_tanh, static_cast<float>(m.resid_pdrop),
        norm(prefix(layer) + "ln_2"),
        Linear(Split::column,
               weight_param({shard_rows(p + "c_fc.weight", m.intermediate_size, s)}, whole_columns(m.hidden_size), true,
                            std_dev()),
               vector_param({shard_rows(p + "c_fc.bias", m.intermediate_size, s)}, Init::zeros)),
        projection(p + "c_proj", m.intermediate_size));
  }

  Norm final_norm() const override { return norm("transformer.ln_f"); }

 private:
  static std::string prefix(Index layer) { return format("transformer.h.{}.", layer); }
  // Into the residual stream: its initial values are scaled by 1 / sqrt(2 layers), as GPT-2's are.
  Linear projection(const std::string& name, Index inputs) const {
    const float std = std_dev() / std::sqrt(2.0f * static_cast<float>(m.num_hidden_layers));
    return {Split::row,
            weight_param({{name + ".weight", m.hidden_size, 0, m.hidden_size}}, shard_columns(inputs, s), true, std),
            vector_param({whole_rows(name + ".bias", m.hidden_size, s)}, Init::zeros)};
  }
  Norm norm(const std::string& name) const {
    return {static_cast<float>(m.layer_norm_epsilon),
            vector_param({whole_rows(name + ".weight", m.hidden_size, s)}, Init::ones),
            vector_param({whole_rows(name + ".bias", m.hidden_size, s)}, Init::zeros)};
  }
};

// The one table of model types.
std::unique_ptr<Family> make_family(const ModelConfig& model, TensorShard shard) {
  if (model.type == "llama") return std::make_unique<Llama>(model, shard);
  if (model.type == "gpt2") return std::make_unique<Gpt2>(model, shard);
  fail(ExitCode::usage, "model.type: '{}' is not one of llama, gpt2", model.type);
}

}  // namespace

StageModel build_stage(const ModelConfig& model, const StagePlace& place) {
  const auto family = make_family(model, place.shard);
  const VocabularyShard vocabulary = vocabulary_shard(model.vocab_size, place.shard);
  const bool tied_here = model.tie_word_embeddings && place.first && place.last;
  StageModel stage{.hidden = model.hidden_size,
                   .blocks = place.layers.end - place.layers.begin,
                   .kv_heads = kv_shard(model.num_key_value_heads, place.shard).heads,
                   .head_dim = model.head_dim};
  const auto add = [&](std::unique_ptr<Layer> layer, Index number) {
    stage.layers.push_back(std::move(layer));
    stage.numbers.push_back(number);
  };
  const Param* table = nullptr;
  if (place.first) {
    auto embedding =
        std::make_unique<Embedding>(vocabulary_param(family->embedding_name(), model, place, true), vocabulary.first,
                                    tied_here, family->positions(), static_cast<float>(model.embd_pdrop));
    table = &embedding->table();
    add(std::move(embedding), -1);
  }
  for (Index i = place.layers.begin; i < place.layers.end; ++i) {
    add(family->attention(i, i - place.layers.begin), i);
    add(family->mlp(i), i);
  }
  if (place.last) {
    std::optional<Param> weight;
    if (!tied_here) {
      // A tied head on another stage than the embedding is a copy under the embedding's name, owned there.
      const bool copy = model.tie_word_embeddings;
      weight = vocabulary_param(copy ? family->embedding_name() : family->head_name(), model, place, !copy);
    }
    auto head = std::make_unique<LossHead>(family->final_norm(), std::move(weight), tied_here ? table : nullptr,
                                           vocabulary.first, vocabulary.valid);
    stage.head = head.get();
    add(std::move(head), -1);
  }
  return stage;
}

}  // namespace dstrain
