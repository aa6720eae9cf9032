#include "kernels/adamw.h"

#include "kernels/check.h"

namespace dstrain {

void AdamW::validate() const {
  check_rank(exp_avg, 1, "adamw: exp_avg");
  const Index n = exp_avg.dim(0);
  if (low.defined()) {
    check(!master.defined(), "adamw: a master beside a split one");
    check_vector(low, DType::u16, n, "adamw: low");
    check_vector(compute, DType::bf16, n, "adamw: compute");
  } else {
    check_vector(master, DType::f32, n, "adamw: master");
  }
  check_vector(exp_avg, DType::f32, n, "adamw: exp_avg");
  check_vector(exp_avg_sq, DType::f32, n, "adamw: exp_avg_sq");
  check_float_vector(gradient, n, "adamw: gradient");
  check_vector(scalars, DType::f32, 4, "adamw: scalars");
  if (compute.defined()) check_vector(compute, DType::bf16, n, "adamw: compute");
  check(beta1 >= 0 && beta1 < 1 && beta2 >= 0 && beta2 < 1 && eps > 0 && weight_decay >= 0,
        "adamw: beta1 {}, beta2 {}, eps {}, weight_decay {}", beta1, beta2, eps, weight_decay);
}

Cost AdamW::cost() const {
  return {0, 0,
          bytes_of({&master, &master, &exp_avg, &exp_avg, &exp_avg_sq, &exp_avg_sq, &gradient, &compute, &scalars}) +
              (low.defined() ? bytes_of({&low, &low, &compute}) : 0)};
}

}  // namespace dstrain
