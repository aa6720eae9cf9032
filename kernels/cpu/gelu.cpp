#include "kernels/gelu.h"

#include "kernels/cpu/loops.h"
#include "kernels/cpu/vector_math.h"

namespace dstrain {

namespace {

constexpr float kSqrt2OverPi = 0.797884560802865356f, kCubic = 0.044715f;
constexpr float kSqrtHalf = 0.707106781186547524f, kInverseSqrt2Pi = 0.398942280401432678f;

// (1 + tanh(u)) / 2 = sigmoid(2 u)
struct TanhForm {
  [[gnu::always_inline]] static float gate(float x) {
    return cpu::sigmoid(2.0f * kSqrt2OverPi * (x + kCubic * x * x * x));
  }
  [[gnu::always_inline]] static float value(float x) { return x * gate(x); }
  [[gnu::always_inline]] static float slope(float x) {
    const float s = gate(x);
    return s + x * s * (1.0f - s) * (2.0f * kSqrt2OverPi * (1.0f + 3.0f * kCubic * x * x));
  }
};

struct ErfForm {
  [[gnu::always_inline]] static float gate(float x) { return 0.5f + 0.5f * cpu::fast_erf(x * kSqrtHalf); }
  [[gnu::always_inline]] static float value(float x) { return x * gate(x); }
  [[gnu::always_inline]] static float slope(float x) {
    return gate(x) + x * kInverseSqrt2Pi * cpu::fast_exp(-0.5f * x * x);
  }
};

template <class T, class Form>
void forward(Stream& stream, const GeluForward& op) {
  const Index rows = op.x.dim(0), columns = op.x.dim(1);
  cpu::parallel_rows(stream, rows, 2 * columns, [&](Index i) {
    const T* const x = cpu::row<T>(op.x, i);
    T* const y = cpu::row<T>(op.y, i);
#pragma omp simd
    for (Index c = 0; c < columns; ++c) y[c] = static_cast<T>(Form::value(cpu::to_float(x[c])));
  });
}

template <class T, class Form>
void backward(Stream& stream, const GeluBackward& op) {
  const Index rows = op.x.dim(0), columns = op.x.dim(1);
  cpu::parallel_rows(stream, rows, 3 * columns, [&](Index i) {
    const T* const x = cpu::row<T>(op.x, i);
    const T* const dy = cpu::row<T>(op.dy, i);
    T* const dx = cpu::row<T>(op.dx, i);
#pragma omp simd
    for (Index c = 0; c < columns; ++c) {
      dx[c] = static_cast<T>(cpu::to_float(dy[c]) * Form::slope(cpu::to_float(x[c])));
    }
  });
}

}  // namespace

void run(Cpu, Stream& stream, const GeluForward& op) {
  cpu::dispatch_float(op.x.dtype, [&](auto zero) {
    using T = decltype(zero);
    op.tanh ? forward<T, TanhForm>(stream, op) : forward<T, ErfForm>(stream, op);
  });
}

void run(Cpu, Stream& stream, const GeluBackward& op) {
  cpu::dispatch_float(op.x.dtype, [&](auto zero) {
    using T = decltype(zero);
    op.tanh ? backward<T, TanhForm>(stream, op) : backward<T, ErfForm>(stream, op);
  });
}

}  // namespace dstrain
