#pragma once
// Final norm, vocabulary-parallel head, cross-entropy. Logits exist only in chunks of rows, never whole: in training
// the backward pass makes a chunk's logits, turns them in place into their gradient and consumes them, so the loss of a
// micro-batch is known with its backward. In eval the forward pass makes the loss.

#include <optional>

#include "lib/layers/norm.h"

namespace dstrain {

class LossHead final : public Layer {
 public:
  // `weight` is (vocabulary / tensor, C), or none when `tied` points to the embedding's table in the same stage.
  // `first_column` is the id of this rank's first row, `valid_columns` how many of its rows are no padding.
  LossHead(Norm norm, std::optional<Param> weight, const Param* tied, Index first_column, Index valid_columns);

  // In Mode::eval adds sum(weight * negative log likelihood) to context.loss, sample by sample when that is (B); in
  // train only normalises.
  Hidden forward(Context& context, const Batch& batch, const Hidden& x, std::unique_ptr<Saved>& saved) override;
  // `dy` is memory to write the result to (rows, C): a loss has no incoming gradient. Adds to context.loss.
  Tensor backward(Context& context, const Batch& batch, const Tensor& dy, Saved& saved) override;
  void visit(const ParamVisitor& visitor) override;

  // This rank's columns of the logits: `normalised` (rows, C) as forward returned it in decode -> (rows, local).
  void logits(Context& context, const Tensor& normalised, const Tensor& out) const;
  const Param& weight() const { return weight_ ? *weight_ : *tied_; }
  Index valid_columns() const { return valid_columns_; }
  Index first_column() const { return first_column_; }

 private:
  struct Kept;
  // Adds the loss of rows [first, last) to `loss`; leaves the gradient of the logits in the chunk and hands it to
  // `use`.
  template <class Use>
  void chunks(Context& context, const Batch& batch, const Tensor& y, Index first, Index last, const Tensor& loss,
              bool gradient, Use use) const;

  Norm norm_;
  std::optional<Param> weight_;
  const Param* tied_;
  Index first_column_;
  Index valid_columns_;
};

}  // namespace dstrain
