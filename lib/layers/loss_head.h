#pragma once
// Final norm, vocabulary-parallel head, cross-entropy. Logits exist only in chunks of rows, never whole: in training
// the backward pass makes a chunk's logits, turns them in place into their gradient and consumes them, so the loss of a
// micro-batch is known with its backward. In eval the forward pass makes the loss.

#include <optional>

#include "lib/layers/norm.h"

namespace dstrain {

// What a head hands to the layers after it, the modules of multi-token prediction.
enum class HeadOutput : unsigned char {
  none,        // there are none: nothing flows back either
  normalised,  // its rows after the norm
  sum,         // before it
};

struct HeadSpec {
  Index first_column = 0;   // the id of this rank's first row
  Index valid_columns = 0;  // how many of its rows are no padding
  Index depth = 0;          // 0: predicts Batch::targets; k: row k - 1 of mtp_targets, and its loss goes there
  HeadOutput output = HeadOutput::none;
  bool adds = false;  // a later layer of this stage writes the weight's gradient first
};

class LossHead final : public Layer {
 public:
  // `weight` is (vocabulary / tensor, C), or none when `tied` points to one that another layer of the stage owns.
  LossHead(HeadSpec spec, Norm norm, std::optional<Param> weight, const Param* tied);

  // In Mode::eval adds sum(weight * negative log likelihood) to context.loss, sample by sample when that is (B), and
  // returns the normalised rows; in train only normalises.
  Hidden forward(Context& context, const Batch& batch, const Hidden& x, std::unique_ptr<Saved>& saved) override;
  // `dy` (rows, C) is the gradient of the output, or, when there is none, memory to write the result to. Adds to
  // context.loss or its place in mtp_losses.
  Tensor backward(Context& context, const Batch& batch, const Tensor& dy, Saved& saved) override;
  void visit(const ParamVisitor& visitor) override;

  // This rank's columns of the logits: `normalised` (rows, C) as forward returned it in decode -> (rows, local).
  void logits(Context& context, const Tensor& normalised, const Tensor& out) const;
  const Param& weight() const { return weight_ ? *weight_ : *tied_; }
  Index valid_columns() const { return spec_.valid_columns; }
  Index first_column() const { return spec_.first_column; }

 private:
  struct Kept;
  // Adds the loss of rows [first, last) to `loss`; leaves the gradient of the logits in the chunk and hands it to
  // `use`.
  template <class Use>
  void chunks(Context& context, const Batch& batch, const Tensor& y, Index first, Index last, const Tensor& loss,
              bool gradient, Use use) const;

  HeadSpec spec_;
  Norm norm_;
  std::optional<Param> weight_;
  const Param* tied_;
};

}  // namespace dstrain
