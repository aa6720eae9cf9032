#include "kernels/swiglu.h"

#include "kernels/cuda/device/row_map.cuh"
#include "kernels/cuda/device/sigmoid.cuh"

namespace dstrain {

namespace {

template <class T, int N>
struct Forward {
  T* y;
  const T* gate_up;
  Index y_stride, gate_up_stride, columns;
  __device__ void operator()(Index row, Index c) const {
    const T* const gate = gate_up + row * gate_up_stride + c;
    const auto g = cuda::load_vec<N>(gate), u = cuda::load_vec<N>(gate + columns);
    cuda::Vec<T, N> out;
#pragma unroll
    for (int j = 0; j < N; ++j) {
      const float x = cuda::to_float(g.v[j]);
      out.v[j] = cuda::from_float<T>(x * cuda::sigmoid<T>(x) * cuda::to_float(u.v[j]));
    }
    cuda::store_vec<N>(y + row * y_stride + c, out);
  }
};

// silu'(g) = s (1 + g (1 - s)), s = sigmoid(g).
template <class T, int N>
struct Backward {
  T* dgate_up;
  const T *dy, *gate_up;
  Index dgate_up_stride, dy_stride, gate_up_stride, columns;
  __device__ void operator()(Index row, Index c) const {
    const T* const gate = gate_up + row * gate_up_stride + c;
    const auto g = cuda::load_vec<N>(gate), u = cuda::load_vec<N>(gate + columns);
    const auto d = cuda::load_vec<N>(dy + row * dy_stride + c);
    cuda::Vec<T, N> dg, du;
#pragma unroll
    for (int j = 0; j < N; ++j) {
      const float x = cuda::to_float(g.v[j]), s = cuda::sigmoid<T>(x), dout = cuda::to_float(d.v[j]);
      dg.v[j] = cuda::from_float<T>(dout * cuda::to_float(u.v[j]) * (s * (1.0f + x * (1.0f - s))));
      du.v[j] = cuda::from_float<T>(dout * (x * s));
    }
    T* const to = dgate_up + row * dgate_up_stride + c;
    cuda::store_vec<N>(to, dg);
    cuda::store_vec<N>(to + columns, du);
  }
};

// Whether both halves of the rows are aligned.
bool aligned_halves(const Tensor& gate_up) {
  return cuda::aligned_rows(gate_up) && static_cast<std::size_t>(gate_up.dim(1) / 2) * size_of(gate_up.dtype) % 16 == 0;
}

}  // namespace

void run(Cuda, Stream& stream, const SwiGluForward& op) {
  const Index rows = op.y.dim(0), columns = op.y.dim(1);
  cuda::dispatch_float(op.y.dtype, [&](auto zero) {
    using T = decltype(zero);
    constexpr int N = 16 / sizeof(T);
    const auto map = [&](auto n) {
      cuda::row_map<n>(stream, rows, columns, "swiglu",
                       Forward<T, n>{cuda::pointer<T>(op.y), cuda::pointer<T>(op.gate_up), cuda::row_stride(op.y),
                                     cuda::row_stride(op.gate_up), columns});
    };
    if (cuda::aligned_rows(op.y) && aligned_halves(op.gate_up))
      map(std::integral_constant<int, N>{});
    else
      map(std::integral_constant<int, 1>{});
  });
}

void run(Cuda, Stream& stream, const SwiGluBackward& op) {
  const Index rows = op.dy.dim(0), columns = op.dy.dim(1);
  cuda::dispatch_float(op.dy.dtype, [&](auto zero) {
    using T = decltype(zero);
    constexpr int N = 16 / sizeof(T);
    const auto map = [&](auto n) {
      cuda::row_map<n>(stream, rows, columns, "swiglu_backward",
                       Backward<T, n>{cuda::pointer<T>(op.dgate_up), cuda::pointer<T>(op.dy),
                                      cuda::pointer<T>(op.gate_up), cuda::row_stride(op.dgate_up),
                                      cuda::row_stride(op.dy), cuda::row_stride(op.gate_up), columns});
    };
    if (cuda::aligned_rows(op.dy) && aligned_halves(op.gate_up) && aligned_halves(op.dgate_up))
      map(std::integral_constant<int, N>{});
    else
      map(std::integral_constant<int, 1>{});
  });
}

}  // namespace dstrain
