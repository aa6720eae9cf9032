#include "lib/model/build.h"

#include <algorithm>
#include <string>
#include <utility>

#include "lib/layers/embedding.h"
#include "lib/layers/mtp_input.h"
#include "lib/model/family.h"
#include "lib/model/llama.h"

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

// `copies`: first and last stage both hold it.
Param vocabulary_param(const std::string& name, const ModelConfig& m, const StagePlace& place, bool copies,
                       bool owned) {
  const VocabularyShard v = vocabulary_shard(m.vocab_size, place.shard);
  return weight_param({{.name = name,
                        .file_rows = m.vocab_size,
                        .begin = std::min(v.first, m.vocab_size),
                        .rows = v.valid,
                        .reduce = copies ? PreReduce::embedding : PreReduce::none,
                        .owned = owned}},
                      {m.hidden_size, 0, m.hidden_size}, false, static_cast<float>(m.initializer_range),
                      v.rows - v.valid);
}

// The one table of model types.
std::unique_ptr<Family> make_family(const ModelConfig& model, const StagePlace& place) {
  if (model.type == "llama") return std::make_unique<Llama>(model, place.shard);
  if (model.type == "gpt2") return make_gpt2(model, place.shard);
  if (model.deepseek()) return make_deepseek(model, place.shard, place.experts, place.balance_alpha);
  fail(ExitCode::usage, "model.type: '{}' is not one of llama, gpt2, deepseek_v2, deepseek_v3", model.type);
}

}  // namespace

StageModel build_stage(const ModelConfig& model, const StagePlace& place) {
  const auto family = make_family(model, place);
  const VocabularyShard vocabulary = vocabulary_shard(model.vocab_size, place.shard);
  const Index depths = place.mtp_depths;
  const bool tied = model.tie_word_embeddings, one_stage = place.first && place.last;
  const bool copies = (tied || depths > 0) && !one_stage;  // of the embedding
  StageModel stage{.hidden = model.hidden_size,
                   .blocks = place.layers.end - place.layers.begin,
                   .kv_heads = kv_shard(model.num_key_value_heads, place.shard).heads,
                   .head_dim = model.head_dim,
                   .value_dim = model.deepseek() ? model.v_head_dim : model.head_dim};
  const auto add = [&](std::unique_ptr<Layer> layer, Index number) {
    stage.layers.push_back(std::move(layer));
    stage.numbers.push_back(number);
  };
  const Param* table = nullptr;
  if (place.first) {
    auto embedding = std::make_unique<Embedding>(
        vocabulary_param(family->embedding_name(), model, place, copies, true), vocabulary.first, model.pad_token_id,
        one_stage && (tied || depths > 0), family->positions(), static_cast<float>(model.embd_pdrop));
    table = &embedding->table();
    add(std::move(embedding), -1);
  }
  for (Index i = place.layers.begin; i < place.layers.end; ++i) {
    add(family->attention(i, i - place.layers.begin), i);
    add(family->mlp(i), i);
  }
  const auto head_spec = [&](Index depth) {
    const HeadOutput output = place.mtp_post_norm ? HeadOutput::normalised : HeadOutput::sum;
    return HeadSpec{.first_column = vocabulary.first,
                    .valid_columns = vocabulary.valid,
                    .depth = depth,
                    .output = depth < depths ? output : HeadOutput::none,
                    .adds = depth < depths};
  };
  if (place.last) {
    std::optional<Param> weight;
    // A tied head on another stage than the embedding is a copy under the embedding's name, owned there.
    if (!tied)
      weight = vocabulary_param(family->head_name(), model, place, false, true);
    else if (!one_stage)
      weight = vocabulary_param(family->embedding_name(), model, place, copies, false);
    auto head =
        std::make_unique<LossHead>(head_spec(0), family->final_norm(), std::move(weight), weight ? nullptr : table);
    stage.head = head.get();
    add(std::move(head), -1);
    if (tied) table = &stage.head->weight();
  }
  stage.main_layers = stage.layers.size();
  for (Index depth = 1; place.last && depth <= depths; ++depth) {
    const Index number = model.num_hidden_layers + depth - 1;
    auto [embedding_norm, hidden_norm, head_norm, join] = family->mtp(number);
    std::optional<Param> copy;
    if (!table) copy = vocabulary_param(family->embedding_name(), model, place, copies, false);
    auto input = std::make_unique<MtpInput>(MtpSpec{.depth = depth,
                                                    .first_row = vocabulary.first,
                                                    .frozen = model.pad_token_id,
                                                    .adds = tied || depth < depths},
                                            std::move(copy), table, std::move(embedding_norm), std::move(hidden_norm),
                                            std::move(join));
    table = &input->table();
    add(std::move(input), number);
    add(family->attention(number, 0), number);
    add(family->mlp(number), number);
    add(std::make_unique<LossHead>(head_spec(depth), std::move(head_norm), std::nullopt, &stage.head->weight()),
        number);
  }
  return stage;
}

}  // namespace dstrain
