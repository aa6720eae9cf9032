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
  Index y_row, y_head, x_row, x_head;
  int heads, half;
  bool backward;
};

// N floats of shared memory; `from` is aligned for vectors when N is more than one.
template <int N>
__device__ inline void load_table(float (&to)[N], const float* from) {
  if constexpr (N == 1) {
    to[0] = *from;
  } else {
#pragma unroll
    for (int j = 0; j < N; j += 4) {
      const auto v = cuda::load_vec<4>(from + j);
#pragma unroll
      for (int i = 0; i < 4; ++i) to[j + i] = v.v[i];
    }
  }
}

// A block takes a row: its sines are made once for all heads. A thread takes N pairs, loaded a turn ahead: the first
// while the sines are made.
template <class T, int N>
__global__ void __launch_bounds__(kThreads) rope_kernel(Rotation r) {
  extern __shared__ __align__(16) float table[];  // (half) cosines, (half) sines
  const Index row = blockIdx.x;
  const T* const x = static_cast<const T*>(r.x) + row * r.x_row;
  T* const y = static_cast<T*>(r.y) + row * r.y_row;
  const int vectors = r.half / N, items = r.heads * vectors;
  cuda::Vec<T, N> first, second;
  const auto load = [&](int item) {
    const T* const from = x + item / vectors * r.x_head + item % vectors * N;
    first = cuda::load_vec<N>(from);
    second = cuda::load_vec<N>(from + r.half);
  };
  int item = static_cast<int>(threadIdx.x);
  if (item < items) load(item);
  const float position = static_cast<float>(r.positions[row]);
  for (int i = static_cast<int>(threadIdx.x); i < r.half; i += kThreads) {
    float sine, cosine;
    sincosf(position * r.frequencies[i], &sine, &cosine);
    table[i] = cosine;
    table[r.half + i] = r.backward ? -sine : sine;
  }
  __syncthreads();
  for (; item < items; item += kThreads) {
    const auto p = first, q = second;
    if (item + kThreads < items) load(item + kThreads);
    const int i = item % vectors * N;
    float cosine[N], sine[N];
    load_table(cosine, table + i);
    load_table(sine, table + r.half + i);
    cuda::Vec<T, N> a, b;
#pragma unroll
    for (int j = 0; j < N; ++j) {
      const float low = cuda::to_float(p.v[j]), high = cuda::to_float(q.v[j]);
      a.v[j] = cuda::from_float<T>(low * cosine[j] - high * sine[j]);
      b.v[j] = cuda::from_float<T>(high * cosine[j] + low * sine[j]);
    }
    T* const to = y + item / vectors * r.y_head + i;
    cuda::store_vec<N>(to, a);
    cuda::store_vec<N>(to + r.half, b);
  }
}

}  // namespace

void run(Cuda, Stream& stream, const Rope& op) {
  const Index rows = op.x.dim(0), half = op.x.dim(2) / 2;
  if (rows == 0 || half == 0) return;
  const Index heads = op.x.dim(1);
  check(half <= 4096 && heads < (Index{1} << 16), "rope: {} heads of {}", heads, 2 * half);
  const Rotation r{.y = op.y.data,
                   .x = op.x.data,
                   .positions = op.positions.as<std::int32_t>(),
                   .frequencies = op.inverse_frequencies.as<float>(),
                   .y_row = op.y.stride(0),
                   .y_head = op.y.stride(1),
                   .x_row = op.x.stride(0),
                   .x_head = op.x.stride(1),
                   .heads = static_cast<int>(heads),
                   .half = static_cast<int>(half),
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
