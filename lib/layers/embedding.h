#pragma once
// Tokens to vectors. The table's rows are cut over the tensor group (ids of other ranks give zero, the group sums);
// GPT-2 adds a learned position embedding, whole on every rank.

#include <optional>

#include "lib/layers/layer.h"

namespace dstrain {

class Embedding final : public Layer {
 public:
  // `first_row`: the id of the table's first row here. `frozen`: the id that gets no gradient here; -1: none. `adds`: a
  // layer after this one in the same stage writes the table's gradient first.
  Embedding(Param table, Index first_row, Index frozen, bool adds, std::optional<Param> positions, float dropout);

  const Param& table() const { return table_; }

  // x is ignored: the tokens come from the batch.
  Hidden forward(Context& context, const Batch& batch, const Hidden& x, std::unique_ptr<Saved>& saved) override;
  // Returns an undefined tensor: tokens have no gradient.
  Tensor backward(Context& context, const Batch& batch, const Tensor& dy, Saved& saved) override;
  void visit(const ParamVisitor& visitor) override;

 private:
  Param table_;
  Index first_row_, frozen_;
  bool adds_;
  std::optional<Param> positions_;
  float dropout_;
};

}  // namespace dstrain
