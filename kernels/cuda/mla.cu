#include "kernels/mla.h"

#include "kernels/cuda/device/dispatch.cuh"

namespace dstrain {

namespace {

constexpr int kThreads = 256;

struct View {
  void* data;
  Index row, head;
  explicit View(const Tensor& t) : data(t.data), row(t.stride(0)), head(t.rank() == 3 ? t.stride(1) : 0) {}
  template <class T>
  __device__ T* at(Index r, Index h) const {
    return static_cast<T*>(data) + r * row + h * head;
  }
};

struct Heads {
  View q, k, kv, shared;  // or their gradients
  const std::int32_t* positions;
  const float* frequencies;
  int heads, nope, pairs;
  float factor;
  int step, other;  // pair i is (step * i, step * i + other)
};

// A block takes a row. Cosines and sines of its pairs go to shared memory first.
__device__ void angles(const Heads& a, Index row, float* cosines, float* sines) {
  const float position = static_cast<float>(a.positions[row]);
  for (int i = static_cast<int>(threadIdx.x); i < a.pairs; i += kThreads) {
    float sine, cosine;
    sincosf(position * a.frequencies[i], &sine, &cosine);
    cosines[i] = cosine * a.factor;
    sines[i] = sine * a.factor;
  }
}

template <class T>
__device__ void rotate(T* pair, int other, float cosine, float sine) {
  const float x = cuda::to_float(pair[0]), y = cuda::to_float(pair[other]);
  pair[0] = cuda::from_float<T>(x * cosine - y * sine);
  pair[other] = cuda::from_float<T>(y * cosine + x * sine);
}

// Copies the first `nope` elements of every head, N at a time.
template <class T, int N>
__device__ void copy_heads(const View& to, const View& from, Index row, int heads, int nope) {
  const int vectors = nope / N;
  for (int item = static_cast<int>(threadIdx.x); item < heads * vectors; item += kThreads) {
    const int h = item / vectors, i = item % vectors * N;
    cuda::store_vec<N>(to.at<T>(row, h) + i, cuda::load_vec<N>(from.at<T>(row, h) + i));
  }
}

template <class T, int N>
__global__ void __launch_bounds__(kThreads) forward_kernel(Heads a) {
  extern __shared__ float table[];
  float* const cosines = table;
  float* const sines = table + a.pairs;
  T* const key = reinterpret_cast<T*>(table + 2 * a.pairs);
  const Index row = blockIdx.x;
  angles(a, row, cosines, sines);
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < a.pairs; i += kThreads) {
    const T* const from = a.shared.at<T>(row, 0) + a.step * i;
    key[2 * i] = from[0];
    key[2 * i + 1] = from[a.other];
    rotate(key + 2 * i, 1, cosines[i], sines[i]);
  }
  __syncthreads();
  copy_heads<T, N>(a.k, a.kv, row, a.heads, a.nope);
  for (int item = static_cast<int>(threadIdx.x); item < a.heads * a.pairs; item += kThreads) {
    const int h = item / a.pairs, i = item % a.pairs;
    rotate(a.q.at<T>(row, h) + a.nope + a.step * i, a.other, cosines[i], sines[i]);
    T* const k = a.k.at<T>(row, h) + a.nope + a.step * i;
    k[0] = key[2 * i];
    k[a.other] = key[2 * i + 1];
  }
}

template <class T, int N>
__global__ void __launch_bounds__(kThreads) backward_kernel(Heads a) {
  extern __shared__ float table[];
  float* const cosines = table;
  float* const sines = table + a.pairs;
  const Index row = blockIdx.x;
  angles(a, row, cosines, sines);
  __syncthreads();
  copy_heads<T, N>(a.kv, a.k, row, a.heads, a.nope);
  for (int item = static_cast<int>(threadIdx.x); item < a.heads * a.pairs; item += kThreads) {
    const int h = item / a.pairs, i = item % a.pairs;
    rotate(a.q.at<T>(row, h) + a.nope + a.step * i, a.other, cosines[i], -sines[i]);
  }
  for (int i = static_cast<int>(threadIdx.x); i < a.pairs; i += kThreads) {
    float x = 0, y = 0;
    for (int h = 0; h < a.heads; ++h) {
      const T* const k = a.k.at<T>(row, h) + a.nope + a.step * i;
      x += cuda::to_float(k[0]);
      y += cuda::to_float(k[a.other]);
    }
    T* const to = a.shared.at<T>(row, 0) + a.step * i;
    to[0] = cuda::from_float<T>(x * cosines[i] + y * sines[i]);
    to[a.other] = cuda::from_float<T>(y * cosines[i] - x * sines[i]);
  }
}

// Whether the first `nope` elements of every head of both start and end at 16 bytes.
bool wide(const Tensor& a, const Tensor& b, Index nope) {
  const auto fits = [&](Index elements) { return static_cast<std::size_t>(elements) * size_of(a.dtype) % 16 == 0; };
  const auto aligned = [&](const Tensor& t) {
    return reinterpret_cast<std::uintptr_t>(t.data) % 16 == 0 && fits(t.stride(0)) && fits(t.stride(1));
  };
  return fits(nope) && aligned(a) && aligned(b);
}

Heads heads_of(const Tensor& q, const Tensor& k, const Tensor& kv, const Tensor& shared, const Tensor& positions,
               const Tensor& frequencies, float factor, bool neighbours) {
  check(shared.dim(1) <= 2048, "mla_heads: {} elements carry the position", shared.dim(1));
  check(q.dim(1) * q.dim(2) < (Index{1} << 31), "mla_heads: a row of {} heads of {}", q.dim(1), q.dim(2));
  return {.q = View(q),
          .k = View(k),
          .kv = View(kv),
          .shared = View(shared),
          .positions = positions.as<std::int32_t>(),
          .frequencies = frequencies.as<float>(),
          .heads = static_cast<int>(q.dim(1)),
          .nope = static_cast<int>(q.dim(2) - shared.dim(1)),
          .pairs = static_cast<int>(shared.dim(1) / 2),
          .factor = factor,
          .step = neighbours ? 2 : 1,
          .other = neighbours ? 1 : static_cast<int>(shared.dim(1) / 2)};
}

}  // namespace

void run(Cuda, Stream& stream, const MlaHeads& op) {
  const Index rows = op.q.dim(0);
  if (rows == 0) return;
  const Heads a =
      heads_of(op.q, op.k, op.kv, op.shared, op.positions, op.inverse_frequencies, op.attention_factor, op.neighbours);
  cuda::dispatch_float(op.q.dtype, [&](auto zero) {
    using T = decltype(zero);
    const std::size_t shared = static_cast<std::size_t>(a.pairs) * (2 * sizeof(float) + 2 * sizeof(T));
    if (wide(op.k, op.kv, a.nope))
      forward_kernel<T, 16 / sizeof(T)><<<cuda::grid(rows), kThreads, shared, cuda::stream_of(stream)>>>(a);
    else
      forward_kernel<T, 1><<<cuda::grid(rows), kThreads, shared, cuda::stream_of(stream)>>>(a);
  });
  cuda::check_launch("mla_heads");
}

void run(Cuda, Stream& stream, const MlaHeadsGradient& op) {
  const Index rows = op.dq.dim(0);
  if (rows == 0) return;
  const Heads a = heads_of(op.dq, op.dk, op.dkv, op.dshared, op.positions, op.inverse_frequencies, op.attention_factor,
                           op.neighbours);
  cuda::dispatch_float(op.dq.dtype, [&](auto zero) {
    using T = decltype(zero);
    const std::size_t shared = static_cast<std::size_t>(a.pairs) * 2 * sizeof(float);
    if (wide(op.dk, op.dkv, a.nope))
      backward_kernel<T, 16 / sizeof(T)><<<cuda::grid(rows), kThreads, shared, cuda::stream_of(stream)>>>(a);
    else
      backward_kernel<T, 1><<<cuda::grid(rows), kThreads, shared, cuda::stream_of(stream)>>>(a);
  });
  cuda::check_launch("mla_heads_gradient");
}

}  // namespace dstrain
