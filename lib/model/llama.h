#pragma once
// Llama's names and layers; DeepSeek's dense layers are the same.

#include "lib/model/family.h"

namespace dstrain {

class Llama : public Family {
 public:
  using Family::Family;
  std::string embedding_name() const override { return "model.embed_tokens.weight"; }
  std::string head_name() const override { return "lm_head.weight"; }
  std::optional<Param> positions() const override { return {}; }
  std::unique_ptr<Layer> attention(Index layer, Index slot) const override;
  std::unique_ptr<Layer> mlp(Index layer) const override;
  Norm final_norm() const override { return norm("model.norm.weight"); }

 protected:
  static std::string prefix(Index layer) { return format("model.layers.{}.", layer); }
  RowPart full_rows(const std::string& name) const { return {name, m.hidden_size, 0, m.hidden_size}; }
  Norm norm(const std::string& name) const {
    return {static_cast<float>(m.rms_norm_eps), vector_param({whole_rows(name, m.hidden_size, s)}, Init::ones)};
  }
};

}  // namespace dstrain
