#include "kernels/cross_entropy.h"

#include <cmath>

#include "kernels/cpu/column_sums.h"
#include "kernels/cpu/vector_math.h"

namespace dstrain {

namespace {
constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

Index valid_of(Index valid_columns, const Tensor& logits) { return valid_columns < 0 ? logits.dim(1) : valid_columns; }
}  // namespace

void run(Cpu, Stream& stream, const CrossEntropyStats& op) {
  const Index rows = op.logits.dim(0), valid = valid_of(op.valid_columns, op.logits);
  const std::int32_t* const targets = op.targets.as<std::int32_t>();
  float* const stats = op.stats.as<float>();
  cpu::dispatch_float(op.logits.dtype, [&](auto zero) {
    using T = decltype(zero);
    cpu::parallel_rows(stream, rows, valid, [&](Index i) {
      const T* const logits = cpu::row<T>(op.logits, i);
      float most = kMinusInfinity, sum = 0;
#pragma omp simd reduction(max : most)
      for (Index c = 0; c < valid; ++c) most = cpu::to_float(logits[c]) > most ? cpu::to_float(logits[c]) : most;
      const float shift = most == kMinusInfinity ? 0.0f : most;
#pragma omp simd reduction(+ : sum)
      for (Index c = 0; c < valid; ++c) sum += cpu::fast_exp(cpu::to_float(logits[c]) - shift);
      const Index target = targets[i] - op.first_column;
      stats[3 * i] = most;
      stats[3 * i + 1] = sum;
      stats[3 * i + 2] = target >= 0 && target < valid ? cpu::to_float(logits[target]) : 0.0f;
    });
  });
}

void run(Cpu, Stream& stream, const CrossEntropyFinish& op) {
  const Index rows = op.logits.dim(0), columns = op.logits.dim(1), ranks = op.stats.dim(0);
  const Index valid = valid_of(op.valid_columns, op.logits);
  const std::int32_t* const targets = op.targets.as<std::int32_t>();
  const float* const weights = op.weights.as<float>();
  const float* const stats = op.stats.as<float>();
  const float scale = op.gradient ? *op.scale.as<float>() : 0.0f;
  const ArenaScope scope(stream.workspace());
  const RowChunks chunks(rows);
  double* const losses = stream.workspace().allocate({chunks.count}, DType::f64).as<double>();
  cpu::dispatch_float(op.logits.dtype, [&](auto zero) {
    using T = decltype(zero);
    const auto finish_row = [&](Index i) -> double {
      T* const logits = cpu::row<T>(op.logits, i);
      if (weights[i] == 0) {
        if (op.gradient) std::fill(logits, logits + columns, T{});
        return 0;
      }
      float most = kMinusInfinity;
      for (Index r = 0; r < ranks; ++r) most = std::max(most, stats[3 * (r * rows + i)]);
      double sum = 0, target_logit = 0;
      for (Index r = 0; r < ranks; ++r) {
        const float* const s = stats + 3 * (r * rows + i);
        if (s[1] != 0) sum += static_cast<double>(s[1]) * std::exp(static_cast<double>(s[0]) - most);
        target_logit += s[2];
      }
      const float log_sum = static_cast<float>(std::log(sum));
      if (op.gradient) {
        const float factor = scale * weights[i], scaled = static_cast<float>(factor / sum);
        const Index target = targets[i] - op.first_column;
        const bool here = target >= 0 && target < valid;
        const float at_target = here ? cpu::to_float(logits[target]) : 0.0f;
#pragma omp simd
        for (Index c = 0; c < valid; ++c) {
          logits[c] = static_cast<T>(scaled * cpu::fast_exp(cpu::to_float(logits[c]) - most));
        }
        // expm1 keeps the digits of softmax - 1 when the target is nearly certain
        if (here) logits[target] = static_cast<T>(factor * std::expm1(at_target - most - log_sum));
        std::fill(logits + valid, logits + columns, T{});
      }
      return weights[i] * (std::log(sum) + most - target_logit);
    };
    stream.pool().parallel_for(chunks.count, [&](Index chunk) {
      double loss = 0;
      for (Index i = chunks.begin(chunk); i < chunks.end(chunk); ++i) loss += finish_row(i);
      losses[chunk] = loss;
    });
  });
  double& loss = *op.loss.as<double>();
  for (Index i = 0; i < chunks.count; ++i) loss += losses[i];
}

void run(Cpu, Stream& stream, const CrossEntropy& op) {
  const ArenaScope scope(stream.workspace());
  const Tensor stats = stream.workspace().allocate({op.logits.dim(0), 3});
  run(Cpu{}, stream, op.first(stats));
  run(Cpu{}, stream, op.second(stats));
}

}  // namespace dstrain
