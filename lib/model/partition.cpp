#include "lib/model/partition.h"

#include <algorithm>
#include <limits>

#include "lib/core/errors.h"

namespace dstrain {

std::vector<LayerRange> partition(Index layers, double layer_cost, double head_cost, int stages) {
  check(1 <= stages && stages <= layers, "{} layers on {} stages", layers, stages);
  // The layers are alike, so the best split has k layers on the last stage and the rest spread evenly; ties go to the
  // larger k, which relieves the earlier stages.
  Index best = 1;
  double best_cost = std::numeric_limits<double>::infinity();
  const Index others = stages - 1;
  for (Index k = 1; k <= layers - others; ++k) {
    if (others == 0 && k != layers) continue;
    const Index most = others == 0 ? 0 : (layers - k + others - 1) / others;
    const double cost =
        std::max(static_cast<double>(most) * layer_cost, static_cast<double>(k) * layer_cost + head_cost);
    if (cost <= best_cost) {
      best_cost = cost;
      best = k;
    }
  }
  std::vector<LayerRange> ranges;
  Index begin = 0, rest = layers - best;
  for (Index s = 0; s < others; ++s) {
    const Index n = rest / (others - s);  // the remainder goes to later stages
    ranges.push_back({begin, begin + n});
    begin += n;
    rest -= n;
  }
  ranges.push_back({begin, layers});
  return ranges;
}

namespace {

// Forward FLOPs a token of a layer with experts. DeepSeek's dense layers are as wide as the experts that a token meets.
double deepseek_layer(const ModelConfig& m, double length) {
  const auto real = [](Index n) { return static_cast<double>(n); };
  const double d = real(m.hidden_size), heads = real(m.num_attention_heads);
  const double query = heads * real(m.head_dim), value = heads * real(m.v_head_dim), rank = real(m.kv_lora_rank);
  const double queries = m.q_lora_rank > 0 ? real(m.q_lora_rank) * (d + query) : d * query;
  const double keys = d * (rank + real(m.qk_rope_head_dim)) + rank * heads * real(m.qk_nope_head_dim + m.v_head_dim);
  const bool dense = m.first_k_dense_replace >= m.num_hidden_layers;
  const double mlp =
      dense ? real(m.intermediate_size) : real(m.moe_intermediate_size * (m.num_experts_per_tok + m.n_shared_experts));
  return 2 * (queries + keys + value * d) + length * (query + value) + 6 * d * mlp;
}

}  // namespace

std::vector<LayerRange> partition(const ModelConfig& m, Index sequence_length, int stages) {
  if (m.deepseek()) {
    const double width = static_cast<double>(m.hidden_size), depths = static_cast<double>(m.num_nextn_predict_layers);
    const double layer = deepseek_layer(m, static_cast<double>(sequence_length));
    const double head = 2 * width * static_cast<double>(m.vocab_size);
    // A module of multi-token prediction has a layer and a head, and joins two vectors before.
    return partition(m.num_hidden_layers, layer, head + depths * (layer + head + 4 * width * width), stages);
  }
  const double d = static_cast<double>(m.hidden_size), f = static_cast<double>(m.intermediate_size);
  const double q = static_cast<double>(m.num_attention_heads * m.head_dim);
  const double kv = static_cast<double>(m.num_key_value_heads * m.head_dim);
  const double mlp = (m.type == "gpt2" ? 4 : 6) * d * f;
  const double layer = 2 * d * (2 * q + 2 * kv) + 2 * static_cast<double>(sequence_length) * q + mlp;
  return partition(m.num_hidden_layers, layer, 2 * d * static_cast<double>(m.vocab_size), stages);
}

}  // namespace dstrain
