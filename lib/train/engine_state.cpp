// The state that an engine holds, set and seen from host memory.
#include <algorithm>

#include "kernels/elementwise.h"
#include "lib/core/transfer.h"
#include "lib/model/params.h"
#include "lib/train/engine.h"

namespace dstrain {

void Engine::initialize(std::uint64_t seed) {
  std::vector<float> values;
  stage_->model().visit([&](Param& p) {
    values.resize(static_cast<std::size_t>(p.numel()));
    dstrain::initialize(p, seed, values.data(), *pool_);
    write(p, Role::weight, values);
  });
  if (use_ != EngineUse::training) return;
  clear_gradients();
  for (const Tensor& t : {params_->exp_avg(), params_->exp_avg_sq()}) launch(stream_, Fill{.y = t});
  optimizer_->set_updates(0);
}

void Engine::clear_gradients() {
  for (const Tensor& t : params_->gradients())
    if (t.defined()) launch(stream_, Fill{.y = t});
}

std::vector<float> Engine::read(const Param& param, Role role) {
  std::vector<float> values(static_cast<std::size_t>(param.numel()));
  params_->read(stream_, role, params_->range_of(param), values.data());
  return values;
}

void Engine::write(const Param& param, Role role, const std::vector<float>& values) {
  check(static_cast<Index>(values.size()) == param.numel(), "{} values for a parameter of {}", values.size(),
        param.numel());
  params_->write(stream_, role, params_->range_of(param), values.data());
}

std::vector<float> Engine::gradient(const Param& param) {
  std::vector<float> values(static_cast<std::size_t>(param.numel()));
  stream_.synchronize();
  if (param.gradient.dtype == DType::f32) {
    download_now(values.data(), param.gradient);
    return values;
  }
  std::vector<bfloat16> rounded(values.size());
  download_now(rounded.data(), param.gradient);
  std::ranges::transform(rounded, values.begin(), [](bfloat16 x) { return static_cast<float>(x); });
  return values;
}

}  // namespace dstrain
