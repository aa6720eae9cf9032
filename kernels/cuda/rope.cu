#include "kernels/rope.h"

#include "kernels/cuda/device/dispatch.cuh"

namespace dstrain {

namespace {

constexpr int kThreads = 256;

struct Rotation {
  void* y;
  const void* x;
  const std::int32_t* positions;
  const float* frequencies;
  Index y_row, y_head, x_row, x_head, heads, half;
  bool backward;
};

// A block takes a row: its sines are made once for all heads. A thread takes N pairs.
template <class T, int N>
__global__ void __launch_bounds__(kThreads) rope_kernel(Rotation r) {
  extern __shared__ float table[];  // (half) cosines, (half) sines
  const Index row = blockIdx.x;
  const float position = static_cast<float>(r.positions[row]);
  for (Index i = threadIdx.x; i < r.half; i += kThreads) {
    float sine, cosine;
    sincosf(position * r.frequencies[i], &sine, &cosine);
    table[i] = cosine;
    table[r.half + i] = r.backward ? -sine : sine;
  }
  __syncthreads();
  const Index vectors = r.half / N;
  for (Index item = threadIdx.x; item < r.heads * vectors; item += kThreads) {
    const Index head = item / vectors, i = item % vectors * N;
    const T* const x = static_cast<const T*>(r.x) + row * r.x_row + head * r.x_head + i;
    T* const y = static_cast<T*>(r.y) + row * r.y_row + head * r.y_head + i;
    const auto first = cuda::load_vec<N>(x), second = cuda::load_vec<N>(x + r.half);
    cuda::Vec<T, N> a, b;
#pragma unroll
    for (int j = 0; j < N; ++j) {
      const float cosine = table[i + j], sine = table[r.half + i + j];
      const float p = cuda::to_float(first.v[j]), q = cuda::to_float(second.v[j]);
      a.v[j] = cuda::from_float<T>(p * cosine - q * sine);
      b.v[j] = cuda::from_float<T>(q * cosine + p * sine);
    }
    cuda::store_vec<N>(y, a);
    cuda::store_vec<N>(y + r.half, b);
  }
}

}  // namespace

void run(Cuda, Stream& stream, const Rope& op) {
  const Index rows = op.x.dim(0), half = op.x.dim(2) / 2;
  if (rows == 0 || half == 0) return;
  check(half <= 4096, "rope: a head of {}", 2 * half);
  const Rotation r{.y = op.y.data,
                   .x = op.x.data,
                   .positions = op.positions.as<std::int32_t>(),
                   .frequencies = op.inverse_frequencies.as<float>(),
                   .y_row = op.y.stride(0),
                   .y_head = op.y.stride(1),
                   .x_row = op.x.stride(0),
                   .x_head = op.x.stride(1),
                   .heads = op.x.dim(1),
                   .half = half,
                   .backward = op.backward};
  cuda::dispatch_float(op.x.dtype, [&](auto zero) {
    using T = decltype(zero);
    constexpr int N = 16 / sizeof(T);
    const auto aligned = [](const Tensor& t) {
      return reinterpret_cast<std::uintptr_t>(t.data) % 16 == 0 && t.stride(0) % N == 0 && t.stride(1) % N == 0;
    };
    const bool wide = half % N == 0 && aligned(op.x) && aligned(op.y);
    const std::size_t table = 2 * static_cast<std::size_t>(half) * sizeof(float);
    if (wide)
      rope_kernel<T, N><<<cuda::grid(rows), kThreads, table, cuda::stream_of(stream)>>>(r);
    else
      rope_kernel<T, 1><<<cuda::grid(rows), kThreads, table, cuda::stream_of(stream)>>>(r);
  });
  cuda::check_launch("rope");
}

}  // namespace dstrain
