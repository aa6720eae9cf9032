#pragma once
// What differs between model types: names, shapes, norms and layers. One class a type; build.cpp has their table.

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "lib/config/config.h"
#include "lib/layers/attention.h"
#include "lib/layers/mlp.h"
#include "lib/model/params.h"

namespace dstrain {

inline ColumnPart whole_columns(Index n) { return {n, 0, n}; }
inline ColumnPart shard_columns(Index n, TensorShard shard) { return {n, n / shard.size * shard.rank, n / shard.size}; }

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
  // Of a module of multi-token prediction, which is otherwise attention(layer) and mlp(layer).
  struct MtpNorms {
    Norm embedding, hidden, head;
    Linear join;
  };
  virtual MtpNorms mtp(Index) const { fail(ExitCode::bug, "{} has no multi-token prediction", m.type); }

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

std::unique_ptr<Family> make_gpt2(const ModelConfig& model, TensorShard shard);
// deepseek_v2 and deepseek_v3. `experts`: which of them are here, cut evenly over the expert group. `balance_alpha`: of
// the sequence-wise balance loss.
std::unique_ptr<Family> make_deepseek(const ModelConfig& model, TensorShard shard, TensorShard experts,
                                      float balance_alpha);

}  // namespace dstrain
