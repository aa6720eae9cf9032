#include "kernels/experts.h"

#include "kernels/check.h"

namespace dstrain {

void TakeRows::validate() const {
  check_rank(y, 2, "take_rows: y");
  check_rank(x, 2, "take_rows: x");
  check_shape(y, {y.dim(0), x.dim(1)}, "take_rows: y");
  check_last_dense(y, "take_rows: y");
  check_last_dense(x, "take_rows: x");
  check_same_dtype(y, x, "take_rows: y");
  check_vector(rows_of, DType::i32, y.dim(0), "take_rows: rows_of");
}

Cost TakeRows::cost() const { return {0, 0, 2 * bytes_of({&y}) + bytes_of({&rows_of})}; }

void ExpertSum::validate() const {
  check_rank(y, 2, "expert_sum: y");
  check_rank(place, 2, "expert_sum: place");
  const Index rows = y.dim(0), columns = y.dim(1);
  check_rows(y, rows, columns, "expert_sum: y");
  check_rank(x, 2, "expert_sum: x");
  check(x.dim(0) <= place.numel(), "expert_sum: {} rows for {} places", x.dim(0), place.numel());
  check_rows(x, x.dim(0), columns, "expert_sum: x");
  check_same_dtype(x, y, "expert_sum: x");
  check_shape(place, {rows, place.dim(1)}, "expert_sum: place");
  check_dtype(place, DType::i32, "expert_sum: place");
  check_flat(place, "expert_sum: place");
  if (weights.defined()) {
    check_shape(weights, place.shape, "expert_sum: weights");
    check_dtype(weights, DType::f32, "expert_sum: weights");
    check_flat(weights, "expert_sum: weights");
  }
  if (start.defined()) {
    check_rows(start, rows, columns, "expert_sum: start");
    check_same_dtype(start, y, "expert_sum: start");
  }
}

Cost ExpertSum::cost() const { return {0, 0, bytes_of({&y, &x, &place, &weights, &start})}; }

void ExpertActivationGradient::validate() const {
  check_rank(d, 2, "expert_activation_gradient: d");
  const Index rows = d.dim(0), columns = d.dim(1);
  check_rows(d, rows, columns, "expert_activation_gradient: d");
  check_rows(weighted, rows, columns, "expert_activation_gradient: weighted");
  check_same_dtype(weighted, d, "expert_activation_gradient: weighted");
  for (const Tensor* t : {&gate_up, &dgate_up}) {
    check_rows(*t, rows, 2 * columns, "expert_activation_gradient: gate_up or its gradient");
    check_same_dtype(*t, d, "expert_activation_gradient: gate_up or its gradient");
  }
  check_rank(weights, 2, "expert_activation_gradient: weights");
  check_shape(dweights, weights.shape, "expert_activation_gradient: dweights");
  check(weights.numel() >= rows, "expert_activation_gradient: {} weights of {} rows", weights.numel(), rows);
  for (const Tensor* t : {&weights, &dweights}) {
    check_dtype(*t, DType::f32, "expert_activation_gradient: weights or their gradient");
    check_flat(*t, "expert_activation_gradient: weights or their gradient");
  }
  check_vector(choice_at, DType::i32, rows, "expert_activation_gradient: choice_at");
}

Cost ExpertActivationGradient::cost() const {
  return {0, 0, bytes_of({&dgate_up, &weighted, &dweights, &d, &gate_up, &weights, &choice_at})};
}

}  // namespace dstrain
