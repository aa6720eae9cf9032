#include "kernels/cross_entropy.h"

#include "kernels/check.h"
#include "kernels/column_sums.h"

namespace dstrain {

void CrossEntropyStats::validate() const {
  check_rank(logits, 2, "cross_entropy_stats: logits");
  const Index rows = logits.dim(0), columns = logits.dim(1);
  check_rows(logits, rows, columns, "cross_entropy_stats: logits");
  check_shape(stats, {rows, 3}, "cross_entropy_stats: stats");
  check_dtype(stats, DType::f32, "cross_entropy_stats: stats");
  check_flat(stats, "cross_entropy_stats: stats");
  check_vector(targets, DType::i32, rows, "cross_entropy_stats: targets");
  check(valid_columns >= -1 && valid_columns <= columns, "cross_entropy_stats: {} valid columns of {}", valid_columns,
        columns);
}

Cost CrossEntropyStats::cost() const { return {0, 0, bytes_of({&stats, &logits, &targets})}; }

void CrossEntropyFinish::validate() const {
  check_rank(logits, 2, "cross_entropy: logits");
  check_rank(stats, 3, "cross_entropy: stats");
  const Index rows = logits.dim(0), columns = logits.dim(1);
  check_rows(logits, rows, columns, "cross_entropy: logits");
  check_shape(stats, {stats.dim(0), rows, 3}, "cross_entropy: stats");
  check_dtype(stats, DType::f32, "cross_entropy: stats");
  check_flat(stats, "cross_entropy: stats");
  check_vector(loss, DType::f64, 1, "cross_entropy: loss");
  check_vector(targets, DType::i32, rows, "cross_entropy: targets");
  check_vector(weights, DType::f32, rows, "cross_entropy: weights");
  if (gradient) check_vector(scale, DType::f32, 1, "cross_entropy: scale");
  check(valid_columns >= -1 && valid_columns <= columns, "cross_entropy: {} valid columns of {}", valid_columns,
        columns);
}

Cost CrossEntropyFinish::cost() const {
  return {0, 0, bytes_of({&loss, &stats, &targets, &weights}) + (gradient ? bytes_of({&logits, &logits}) : 0.0)};
}

std::size_t CrossEntropyFinish::workspace(Device target) const {
  const Index sums = target == Device::cuda ? logits.dim(0) : RowChunks(logits.dim(0)).count;
  return arena_bytes({static_cast<std::size_t>(sums) * sizeof(double)});
}

namespace {
// Stands for stats that a workspace will hold.
Tensor stats_of(const CrossEntropy& op) { return Tensor(nullptr, DType::f32, op.logits.device, {op.logits.dim(0), 3}); }
}  // namespace

void CrossEntropy::validate() const {
  check_rank(logits, 2, "cross_entropy: logits");
  second(stats_of(*this)).validate();
}

Cost CrossEntropy::cost() const {
  return {0, 0, bytes_of({&loss, &logits, &targets, &weights}) + (gradient ? bytes_of({&logits}) : 0.0)};
}

std::size_t CrossEntropy::workspace(Device target) const {
  return arena_bytes({static_cast<std::size_t>(3 * logits.dim(0)) * sizeof(float)}) +
         second(stats_of(*this)).workspace(target);
}

}  // namespace dstrain
