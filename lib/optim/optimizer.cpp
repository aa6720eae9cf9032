#include "lib/optim/optimizer.h"

#include <cmath>

#include "kernels/adamw.h"
#include "kernels/elementwise.h"
#include "kernels/gradient_norm.h"

namespace dstrain {

Optimizer::Optimizer(const OptimizerConfig& config, const ParamArena& params, Arena& memory)
    : config_(config), params_(params), scalars_(memory.allocate({4})) {}

void Optimizer::squared_norm(Stream& stream, const Tensor& squared_norm) const {
  launch(stream, Fill{.y = squared_norm});
  for (const FlatRange& r : params_.owned())
    launch(stream, SquaredNorm{.result = squared_norm, .x = params_.gradient().slice(0, r.begin, r.end)});
}

void Optimizer::step(Stream& stream, const Tensor& squared_norm, double lr, std::int64_t update) const {
  const double beta1 = config_.betas[0], beta2 = config_.betas[1];
  if (stream.device() != Device::dry) {
    float* s = scalars_.as<float>();
    s[0] = static_cast<float>(lr);
    s[2] = static_cast<float>(1 - std::pow(beta1, static_cast<double>(update)));
    s[3] = static_cast<float>(1 - std::pow(beta2, static_cast<double>(update)));
  }
  launch(stream, ClipCoefficient{.scalars = scalars_,
                                 .squared_norm = squared_norm,
                                 .max_norm = static_cast<float>(config_.clip_grad_norm)});
  for (const bool decay : {true, false}) {
    const FlatRange r = params_.segment(decay);
    if (r.size() == 0) continue;
    const auto part = [&](const Tensor& flat) { return flat.slice(0, r.begin, r.end); };
    launch(stream, AdamW{.master = part(params_.master()),
                         .exp_avg = part(params_.exp_avg()),
                         .exp_avg_sq = part(params_.exp_avg_sq()),
                         .gradient = part(params_.gradient()),
                         .scalars = scalars_,
                         .beta1 = static_cast<float>(beta1),
                         .beta2 = static_cast<float>(beta2),
                         .eps = static_cast<float>(config_.eps),
                         .weight_decay = decay ? static_cast<float>(config_.weight_decay) : 0.0f});
  }
}

}  // namespace dstrain
