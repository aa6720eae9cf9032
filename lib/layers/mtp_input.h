#pragma once
// The first layer of a module of multi-token prediction (DeepSeek-AI, arXiv 2412.19437, section 2.2): joins what the
// model, or the module before, says of a position with the token after it. h' = W [norm(embedding) ; norm(h)]; the
// embedding's half comes first. The rows are then those of an ordinary decoder layer and of a loss head.

#include <optional>

#include "lib/layers/linear.h"
#include "lib/layers/norm.h"

namespace dstrain {

struct MtpSpec {
  Index depth = 1;      // takes the token `depth` positions on
  Index first_row = 0;  // the id of the table's first row here
  Index frozen = -1;    // the id that gets no gradient here; -1: none
  bool adds = false;    // a later layer of this stage writes the table's gradient first
};

class MtpInput final : public Layer {
 public:
  // `table`: the embedding, (vocabulary / tensor, C), or none when `shared` points to one that another layer of the
  // stage owns. `join`: whole, (C, 2 C).
  MtpInput(MtpSpec spec, std::optional<Param> table, const Param* shared, Norm embedding_norm, Norm hidden_norm,
           Linear join);

  const Param& table() const { return table_ ? *table_ : *shared_; }

  // For Mode::train alone. x has no branch.
  Hidden forward(Context& context, const Batch& batch, const Hidden& x, std::unique_ptr<Saved>& saved) override;
  Tensor backward(Context& context, const Batch& batch, const Tensor& dy, Saved& saved) override;
  void visit(const ParamVisitor& visitor) override;

 private:
  struct Kept;
  Tensor tokens(const Batch& batch) const;

  MtpSpec spec_;
  std::optional<Param> table_;
  const Param* shared_;
  Norm embedding_norm_, hidden_norm_;
  Linear join_;
};

}  // namespace dstrain
