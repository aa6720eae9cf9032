#pragma once
// Norm, mixture of experts (DeepSeek-AI, "DeepSeekMoE", 2024): every row goes to the K experts that the router chooses
// and to the shared one, SwiGLU networks all. Nothing is dropped. Each expert is cut over the tensor group as an Mlp
// is; the router is whole on every rank. With expert parallelism (Context::experts) a rank holds a part of the experts,
// rows travel to them (expert_exchange.h), and backward computes again what experts made of rows of other ranks: what
// is kept does not depend on the router.

#include <optional>

#include "kernels/router.h"
#include "lib/layers/expert_exchange.h"
#include "lib/layers/linear.h"
#include "lib/layers/norm.h"

namespace dstrain {

struct MoeSpec {
  Index experts = 0;
  Index chosen = 0;  // K
  RouterRule rule;
  float balance_alpha = 0;  // of the sequence-wise balance loss; 0: none
  bool mtp = false;         // of a module of multi-token prediction: its balance loss has that one's weight
};

class Moe final : public Layer {
 public:
  // router: (E, C). counts: (E), of UpdateRule::balance, the balancing bias, or of UpdateRule::count. gate_up: of each
  // expert here rows [gate | up] of its inner width, then the next; down: of each expert (C, inner width). The shared
  // expert's likewise.
  struct Shared {
    Param gate_up, down;
  };
  Moe(MoeSpec spec, Norm norm, Param router, Param counts, Param gate_up, Param down, std::optional<Shared> shared);

  Hidden forward(Context& context, const Batch& batch, const Hidden& x, std::unique_ptr<Saved>& saved) override;
  Tensor backward(Context& context, const Batch& batch, const Tensor& dy, Saved& saved) override;
  void visit(const ParamVisitor& visitor) override;

 private:
  struct Kept;
  // Rows and what experts of this rank make of them.
  struct Work {
    Tensor x;                  // (rows, C)
    Tensor weights;            // (rows, K) f32
    Tensor offsets, place;     // (experts here + 1) i32, (rows, K) i32
    Tensor choice_at, row_at;  // (P) i32
    Tensor gate_up;            // (P, 2F), in the experts' order
  };
  void route(Context& context, Arena& memory, Kept& kept) const;
  void shared_forward(Context& context, Arena& memory, Kept& kept) const;
  void gate_up_forward(Context& context, const Work& work, const Tensor& activated) const;
  // y (rows, C) = start + the experts' part of each row.
  void experts_forward(Context& context, const Work& work, const Tensor& y, const Tensor& start) const;
  // Each adds its part to dnorm (rows, C), which the first one overwrites.
  void shared_backward(Context& context, const Kept& kept, const Tensor& dy, const Tensor& dnorm) const;
  // dx (rows, C) = start + the gradient; dweights (rows, K) is this rank's part, choices without a place are left. What
  // was work.gate_up is lost.
  void experts_backward(Context& context, const Work& work, const Tensor& dy, const Tensor& dweights, const Tensor& dx,
                        const Tensor& start, Write write) const;
  // The same by way of the ranks that hold the experts.
  void exchange_forward(Context& context, Arena& memory, Kept& kept) const;
  void exchange_backward(Context& context, const Kept& kept, const Tensor& dy, const Tensor& dweights,
                         const Tensor& dnorm) const;
  Work received(Context& context, const ExpertExchange::Part& part, const Tensor& x, const Tensor& experts,
                const Tensor& weights) const;
  void router_backward(Context& context, const Batch& batch, const Kept& kept, const Tensor& dweights,
                       const Tensor& dnorm) const;

  MoeSpec spec_;
  Norm norm_;
  Param router_;
  Param counts_;
  Param gate_up_, down_;
  std::optional<Shared> shared_;
};

}  // namespace dstrain
