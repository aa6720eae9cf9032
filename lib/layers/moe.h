#pragma once
// Norm, mixture of experts (DeepSeek-AI, "DeepSeekMoE", 2024): every row goes to the K experts that the router chooses
// and to the shared one, SwiGLU networks all. Nothing is dropped. Each expert is cut over the tensor group as an Mlp
// is; the router is whole on every rank.

#include <optional>

#include "kernels/router.h"
#include "lib/layers/linear.h"
#include "lib/layers/norm.h"

namespace dstrain {

struct MoeSpec {
  Index experts = 0;
  Index chosen = 0;  // K
  RouterRule rule;
  float balance_alpha = 0;  // of the sequence-wise balance loss; 0: none
};

class Moe final : public Layer {
 public:
  // router: (E, C). bias: (E), the balancing bias, whose gradient is the experts' tokens of the step. gate_up: of each
  // expert rows [gate | up] of its inner width, then the next; down: of each expert (C, inner width). The shared
  // expert's likewise.
  struct Shared {
    Param gate_up, down;
  };
  Moe(MoeSpec spec, Norm norm, Param router, std::optional<Param> bias, Param gate_up, Param down,
      std::optional<Shared> shared);

  Hidden forward(Context& context, const Batch& batch, const Hidden& x, std::unique_ptr<Saved>& saved) override;
  Tensor backward(Context& context, const Batch& batch, const Tensor& dy, Saved& saved) override;
  void visit(const ParamVisitor& visitor) override;

 private:
  struct Kept;
  void route(Context& context, Arena& memory, Kept& kept) const;
  void shared_forward(Context& context, Arena& memory, Kept& kept) const;
  // Each adds its part to dnorm (rows, C), which the first one overwrites.
  void shared_backward(Context& context, const Kept& kept, const Tensor& dy, const Tensor& dnorm) const;
  // dweights (rows, K) is overwritten with this rank's part.
  void experts_backward(Context& context, const Kept& kept, const Tensor& dy, const Tensor& dweights,
                        const Tensor& dnorm) const;
  void router_backward(Context& context, const Batch& batch, const Kept& kept, const Tensor& dweights,
                       const Tensor& dnorm) const;

  MoeSpec spec_;
  Norm norm_;
  Param router_;
  std::optional<Param> bias_;
  Param gate_up_, down_;
  std::optional<Shared> shared_;
};

}  // namespace dstrain
