#pragma once
// From the model's keys to the layers of one pipeline stage on one tensor rank.

#include <memory>
#include <vector>

#include "lib/config/config.h"
#include "lib/layers/layer.h"
#include "lib/layers/loss_head.h"
#include "lib/model/partition.h"

namespace dstrain {

struct StagePlace {
  LayerRange layers;
  bool first = true;  // has the embedding
  bool last = true;   // has the head
  TensorShard shard;
  TensorShard experts;      // of the experts, cut evenly over the expert group
  float balance_alpha = 0;  // of the sequence-wise balance loss of experts
  Index mtp_depths = 0;     // modules of multi-token prediction on the last stage; every stage knows of them
  bool mtp_post_norm = true;
};

// The layers of a stage in forward order, and what callers need to know of them.
struct StageModel {
  std::vector<std::unique_ptr<Layer>> layers;
  std::vector<Index> numbers;   // for each layer the transformer layer that it belongs to, -1 for embedding and head
  std::size_t main_layers = 0;  // the first so many are the model; the others, of multi-token prediction, only train
  LossHead* head = nullptr;     // the model's, owned by `layers`; null unless last
  Index hidden = 0;
  Index blocks = 0;    // transformer layers here: slots of a KvCache
  Index kv_heads = 0;  // this rank's
  Index head_dim = 0;  // of queries and keys
  Index value_dim = 0;

  void visit(const ParamVisitor& visitor) const {
    for (const auto& layer : layers) layer->visit(visitor);
  }
};

// REQUIRES: a resolved model (no derived key is 0). Throws Error{usage} on an unknown model.type.
StageModel build_stage(const ModelConfig& model, const StagePlace& place);

}  // namespace dstrain
