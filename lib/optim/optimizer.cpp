#include "lib/optim/optimizer.h"

#include "kernels/adamw.h"
#include "kernels/elementwise.h"
#include "kernels/finite.h"
#include "kernels/gradient_norm.h"
#include "kernels/router.h"
#include "lib/core/transfer.h"

namespace dstrain {

Optimizer::Optimizer(const OptimizerConfig& config, const ParamArena& params, Arena& memory, Halt halt)
    : config_(config),
      params_(params),
      halt_(halt),
      scalars_(memory.allocate({4})),
      lr_(scalars_.slice(0, 0, 1)),
      limits_(memory.allocate({2}, DType::f64)),
      state_(memory.allocate({2}, DType::i64)) {}

void Optimizer::set_updates(std::int64_t applied) const {
  const std::int64_t state[2] = {applied, 0};
  upload_now(state_, state);
}

void Optimizer::squared_norm(Stream& stream, const Tensor& squared_norm, const Tensor& bad, bool dense,
                             bool spread) const {
  stream.set_place({.phase = "norm"});
  launch(stream, Fill{.y = squared_norm});
  // What another rank counts was computed here too.
  Index at = 0;
  const auto check_up_to = [&](Index end) {
    if (end <= at) return;
    for (const Tensor& t : params_.gradients({at, end}))
      if (t.defined()) launch(stream, FiniteCheck{.flag = bad, .x = t, .most = kMostValue});
  };
  for (const ParamArena::Owned& o : params_.owned()) {
    if (!(o.spread ? spread : dense)) continue;
    launch(stream, SquaredNorm{.result = squared_norm, .x = params_.gradient(o.range)});
    check_up_to(o.range.begin);
    at = o.range.end;
  }
  check_up_to(params_.numel());
}

void Optimizer::check_weights(Stream& stream, const Tensor& bad) const {
  constexpr Index kRow = 64;  // arenas hold a multiple of it
  stream.set_place({.phase = "weight check"});
  launch(stream, Fill{.y = bad});
  // What ops read: a master that is bad makes them bad.
  const Tensor& compute = params_.compute();
  for (const Tensor& t : {compute, compute.dtype == DType::bf16 ? params_.biases() : Tensor{}})
    if (t.defined() && t.numel() > 0)
      launch(stream, FiniteCheck{.flag = bad, .x = t.view({t.numel() / kRow, kRow}), .most = kMostValue});
}

void Optimizer::step(Stream& stream, const Tensor& squared_norm, const Tensor& loss, const Tensor& bad,
                     float bias_rate) const {
  stream.set_place({.phase = "optimizer"});
  launch(stream, UpdateScalars{.scalars = scalars_,
                               .state = state_,
                               .squared_norm = squared_norm,
                               .loss = loss,
                               .bad = bad,
                               .limits = limits_,
                               .max_norm = static_cast<float>(config_.clip_grad_norm),
                               .beta1 = config_.betas[0],
                               .beta2 = config_.betas[1],
                               .halt = halt_.nonfinite,
                               .halt_beyond = halt_.beyond});
  const bool bf16 = params_.compute().dtype == DType::bf16;
  for (const auto& [r, decay] : params_.segments()) {
    const auto part = [&, &r = r](const Tensor& flat) {
      return flat.defined() ? flat.slice(0, r.begin, r.end) : Tensor{};
    };
    launch(stream, AdamW{.master = part(params_.master()),
                         .exp_avg = part(params_.exp_avg()),
                         .exp_avg_sq = part(params_.exp_avg_sq()),
                         .gradient = params_.gradient(r),
                         .compute = bf16 ? part(params_.compute()) : Tensor{},
                         .low = part(params_.low()),
                         .scalars = scalars_,
                         .beta1 = static_cast<float>(config_.betas[0]),
                         .beta2 = static_cast<float>(config_.betas[1]),
                         .eps = static_cast<float>(config_.eps),
                         .weight_decay = decay ? static_cast<float>(config_.weight_decay) : 0.0f});
  }
  if (bias_rate == 0) return;
  for (const Param* p : params_.counted())
    if (p->rule == UpdateRule::balance)
      launch(stream, BalanceUpdate{.bias = p->compute, .counts = p->gradient, .scalars = scalars_, .rate = bias_rate});
}

}  // namespace dstrain
