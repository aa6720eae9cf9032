#include "kernels/gelu.h"

#include "kernels/cuda/device/row_map.cuh"
#include "kernels/cuda/device/sigmoid.cuh"

namespace dstrain {

namespace {

constexpr float kSqrt2OverPi = 0.797884560802865356f, kCubic = 0.044715f;
constexpr float kSqrtHalf = 0.707106781186547524f, kInverseSqrt2Pi = 0.398942280401432678f;

// (1 + tanh(u)) / 2 = sigmoid(2 u)
template <class T>
struct TanhForm {
  __device__ static float gate(float x) { return cuda::sigmoid<T>(2.0f * kSqrt2OverPi * (x + kCubic * x * x * x)); }
  __device__ static float value(float x) { return x * gate(x); }
  __device__ static float slope(float x) {
    const float s = gate(x);
    return s + x * s * (1.0f - s) * (2.0f * kSqrt2OverPi * (1.0f + 3.0f * kCubic * x * x));
  }
};

struct ErfForm {
  __device__ static float gate(float x) { return 0.5f + 0.5f * erff(x * kSqrtHalf); }
  __device__ static float value(float x) { return x * gate(x); }
  __device__ static float slope(float x) { return gate(x) + x * kInverseSqrt2Pi * expf(-0.5f * x * x); }
};

template <class T, int N, class Form>
struct Forward {
  T* y;
  const T* x;
  Index y_stride, x_stride;
  __device__ void operator()(Index row, Index c) const {
    auto v = cuda::load_vec<N>(x + row * x_stride + c);
#pragma unroll
    for (int j = 0; j < N; ++j) v.v[j] = cuda::from_float<T>(Form::value(cuda::to_float(v.v[j])));
    cuda::store_vec<N>(y + row * y_stride + c, v);
  }
};

template <class T, int N, class Form>
struct Backward {
  T* dx;
  const T *dy, *x;
  Index dx_stride, dy_stride, x_stride;
  __device__ void operator()(Index row, Index c) const {
    const auto v = cuda::load_vec<N>(x + row * x_stride + c), d = cuda::load_vec<N>(dy + row * dy_stride + c);
    cuda::Vec<T, N> out;
#pragma unroll
    for (int j = 0; j < N; ++j)
      out.v[j] = cuda::from_float<T>(cuda::to_float(d.v[j]) * Form::slope(cuda::to_float(v.v[j])));
    cuda::store_vec<N>(dx + row * dx_stride + c, out);
  }
};

}  // namespace

void run(Cuda, Stream& stream, const GeluForward& op) {
  const bool wide = cuda::aligned_rows(op.x) && cuda::aligned_rows(op.y);
  cuda::dispatch_float(op.x.dtype, [&](auto zero) {
    using T = decltype(zero);
    const auto map = [&](auto n, auto form) {
      using F = Forward<T, n, decltype(form)>;
      cuda::row_map<n>(
          stream, op.x.dim(0), op.x.dim(1), "gelu",
          F{cuda::pointer<T>(op.y), cuda::pointer<T>(op.x), cuda::row_stride(op.y), cuda::row_stride(op.x)});
    };
    const std::integral_constant<int, 16 / sizeof(T)> many;
    const std::integral_constant<int, 1> one;
    if (op.tanh)
      wide ? map(many, TanhForm<T>{}) : map(one, TanhForm<T>{});
    else
      wide ? map(many, ErfForm{}) : map(one, ErfForm{});
  });
}

void run(Cuda, Stream& stream, const GeluBackward& op) {
  const bool wide = cuda::aligned_rows(op.x) && cuda::aligned_rows(op.dy) && cuda::aligned_rows(op.dx);
  cuda::dispatch_float(op.x.dtype, [&](auto zero) {
    using T = decltype(zero);
    const auto map = [&](auto n, auto form) {
      using F = Backward<T, n, decltype(form)>;
      cuda::row_map<n>(stream, op.x.dim(0), op.x.dim(1), "gelu_backward",
                       F{cuda::pointer<T>(op.dx), cuda::pointer<T>(op.dy), cuda::pointer<T>(op.x),
                         cuda::row_stride(op.dx), cuda::row_stride(op.dy), cuda::row_stride(op.x)});
    };
    const std::integral_constant<int, 16 / sizeof(T)> many;
    const std::integral_constant<int, 1> one;
    if (op.tanh)
      wide ? map(many, TanhForm<T>{}) : map(one, TanhForm<T>{});
    else
      wide ? map(many, ErfForm{}) : map(one, ErfForm{});
  });
}

}  // namespace dstrain
