#include "kernels/experts.h"

#include "kernels/cuda/device/row_map.cuh"
#include "kernels/cuda/device/sigmoid.cuh"

namespace dstrain {

namespace {

template <class T, int N>
struct Sum {
  T* y;
  const T *x, *start;
  const std::int32_t* place;
  const float* weights;
  Index y_stride, x_stride, start_stride;
  int top;
  __device__ void operator()(Index row, Index c) const {
    float sum[N];
    if (start) {
      const auto s = cuda::load_vec<N>(start + row * start_stride + c);
#pragma unroll
      for (int j = 0; j < N; ++j) sum[j] = cuda::to_float(s.v[j]);
    } else {
#pragma unroll
      for (int j = 0; j < N; ++j) sum[j] = 0;
    }
    for (int k = 0; k < top; ++k) {
      const Index from = place[row * top + k];
      if (from < 0) continue;
      const float w = weights ? weights[row * top + k] : 1.0f;
      const auto v = cuda::load_vec<N>(x + from * x_stride + c);
#pragma unroll
      for (int j = 0; j < N; ++j) sum[j] += w * cuda::to_float(v.v[j]);
    }
    cuda::Vec<float, N> out;
#pragma unroll
    for (int j = 0; j < N; ++j) out.v[j] = sum[j];
    if constexpr (N * sizeof(float) <= 16) {
      cuda::store_vec<N>(y + row * y_stride + c, cuda::rounded<T>(out));
    } else {
      cuda::Vec<T, N> v;
#pragma unroll
      for (int j = 0; j < N; ++j) v.v[j] = cuda::from_float<T>(out.v[j]);
      cuda::store_vec<N>(y + row * y_stride + c, v);
    }
  }
};

// Rows of words W.
template <class W>
struct Take {
  W* y;
  const W* x;
  const std::int32_t* rows_of;
  Index y_stride, x_stride;
  __device__ void operator()(Index row, Index c) const { y[row * y_stride + c] = x[rows_of[row] * x_stride + c]; }
};

template <class W>
bool in_words(const Tensor& t) {
  const auto width = static_cast<Index>(size_of(t.dtype)), word = static_cast<Index>(sizeof(W));
  return t.dim(1) * width % word == 0 && t.stride(0) * width % word == 0 &&
         reinterpret_cast<std::uintptr_t>(t.data) % sizeof(W) == 0;
}

template <class W>
void take_rows(Stream& stream, const TakeRows& op) {
  const auto width = static_cast<Index>(size_of(op.y.dtype)), word = static_cast<Index>(sizeof(W));
  cuda::row_map<1>(stream, op.y.dim(0), op.y.dim(1) * width / word, "take_rows",
                   Take<W>{.y = reinterpret_cast<W*>(op.y.data),
                           .x = reinterpret_cast<const W*>(op.x.data),
                           .rows_of = op.rows_of.as<std::int32_t>(),
                           .y_stride = op.y.stride(0) * width / word,
                           .x_stride = op.x.stride(0) * width / word});
}

constexpr int kThreads = 256;

struct Activation {
  void *dgate_up, *weighted;
  float* dweights;
  const void *d, *gate_up;
  const float* weights;
  const std::int32_t* choice_at;
  Index dgate_up_row, weighted_row, d_row, gate_up_row, columns;
};

// A block takes a row. silu'(g) = s (1 + g (1 - s)), s = sigmoid(g).
template <class T, int N>
__global__ void __launch_bounds__(kThreads) activation_gradient_kernel(Activation a) {
  __shared__ float sums[kThreads / 32];
  const Index p = blockIdx.x;
  const std::int32_t choice = a.choice_at[p];
  const float w = a.weights[choice];
  const T* const gate = static_cast<const T*>(a.gate_up) + p * a.gate_up_row;
  const T* const d = static_cast<const T*>(a.d) + p * a.d_row;
  T* const dgate = static_cast<T*>(a.dgate_up) + p * a.dgate_up_row;
  T* const weighted = static_cast<T*>(a.weighted) + p * a.weighted_row;
  float dot = 0;
  for (Index c = static_cast<Index>(threadIdx.x) * N; c < a.columns; c += kThreads * N) {
    const auto g = cuda::load_vec<N>(gate + c), u = cuda::load_vec<N>(gate + a.columns + c);
    const auto v = cuda::load_vec<N>(d + c);
    cuda::Vec<T, N> dg, du, out;
#pragma unroll
    for (int j = 0; j < N; ++j) {
      const float x = cuda::to_float(g.v[j]), up = cuda::to_float(u.v[j]), y = cuda::to_float(v.v[j]);
      const float s = cuda::sigmoid<T>(x), active = x * s * up;
      dot += y * active;
      dg.v[j] = cuda::from_float<T>(w * y * up * (s * (1.0f + x * (1.0f - s))));
      du.v[j] = cuda::from_float<T>(w * y * (x * s));
      out.v[j] = cuda::from_float<T>(w * active);
    }
    cuda::store_vec<N>(dgate + c, dg);
    cuda::store_vec<N>(dgate + a.columns + c, du);
    cuda::store_vec<N>(weighted + c, out);
  }
  dot = cuda::warp_sum(dot);
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = dot;
  __syncthreads();
  if (threadIdx.x != 0) return;
  float sum = 0;
  for (int i = 0; i < kThreads / 32; ++i) sum += sums[i];
  a.dweights[choice] = sum;
}

}  // namespace

void run(Cuda, Stream& stream, const TakeRows& op) {
  if (in_words<uint4>(op.y) && in_words<uint4>(op.x))
    take_rows<uint4>(stream, op);
  else if (in_words<std::uint32_t>(op.y) && in_words<std::uint32_t>(op.x))
    take_rows<std::uint32_t>(stream, op);
  else if (in_words<std::uint16_t>(op.y) && in_words<std::uint16_t>(op.x))
    take_rows<std::uint16_t>(stream, op);
  else
    take_rows<std::uint8_t>(stream, op);
}

void run(Cuda, Stream& stream, const ExpertSum& op) {
  const Index rows = op.y.dim(0), columns = op.y.dim(1);
  cuda::dispatch_float(op.y.dtype, [&](auto zero) {
    using T = decltype(zero);
    constexpr int N = 16 / sizeof(T);
    const auto map = [&](auto n) {
      cuda::row_map<n>(stream, rows, columns, "expert_sum",
                       Sum<T, n>{.y = cuda::pointer<T>(op.y),
                                 .x = cuda::pointer<T>(op.x),
                                 .start = cuda::pointer<T>(op.start),
                                 .place = op.place.as<std::int32_t>(),
                                 .weights = op.weights.defined() ? op.weights.as<float>() : nullptr,
                                 .y_stride = cuda::row_stride(op.y),
                                 .x_stride = cuda::row_stride(op.x),
                                 .start_stride = cuda::row_stride(op.start),
                                 .top = static_cast<int>(op.place.dim(1))});
    };
    if (cuda::aligned_rows(op.y) && cuda::aligned_rows(op.x) && (!op.start.defined() || cuda::aligned_rows(op.start)))
      map(std::integral_constant<int, N>{});
    else
      map(std::integral_constant<int, 1>{});
  });
}

void run(Cuda, Stream& stream, const ExpertActivationGradient& op) {
  const Index rows = op.d.dim(0), columns = op.d.dim(1);
  if (rows == 0) return;
  const Activation a{.dgate_up = op.dgate_up.data,
                     .weighted = op.weighted.data,
                     .dweights = op.dweights.as<float>(),
                     .d = op.d.data,
                     .gate_up = op.gate_up.data,
                     .weights = op.weights.as<float>(),
                     .choice_at = op.choice_at.as<std::int32_t>(),
                     .dgate_up_row = op.dgate_up.stride(0),
                     .weighted_row = op.weighted.stride(0),
                     .d_row = op.d.stride(0),
                     .gate_up_row = op.gate_up.stride(0),
                     .columns = columns};
  cuda::dispatch_float(op.d.dtype, [&](auto zero) {
    using T = decltype(zero);
    constexpr int N = 16 / sizeof(T);
    const bool wide = cuda::aligned_rows(op.d) && cuda::aligned_rows(op.weighted) && cuda::aligned_rows(op.gate_up) &&
                      cuda::aligned_rows(op.dgate_up) && columns % N == 0;
    if (wide)
      activation_gradient_kernel<T, N><<<cuda::grid(rows), kThreads, 0, cuda::stream_of(stream)>>>(a);
    else
      activation_gradient_kernel<T, 1><<<cuda::grid(rows), kThreads, 0, cuda::stream_of(stream)>>>(a);
  });
  cuda::check_launch("expert_activation_gradient");
}

}  // namespace dstrain
