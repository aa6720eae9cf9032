#include "kernels/adamw.h"

#include "kernels/cuda/device/dispatch.cuh"
#include "kernels/cuda/device/split_master.cuh"

namespace dstrain {

namespace {

constexpr int kThreads = 256, kWide = 4;

struct Update {
  float *master, *exp_avg, *exp_avg_sq;
  const void* gradient;  // G
  __nv_bfloat16* compute;
  std::uint16_t* low;
  const float* scalars;
  float beta1, beta2, eps, weight_decay;
  Index n;
};

struct Numbers {
  float clip, decay, step, root, rest1, beta2, rest2, eps;
};

// Each operation is rounded on its own, as on the CPU: an element's bits are the same in the vector body and the tail.
__device__ inline void update(const Numbers& s, float gradient, float& w, float& m, float& v) {
  const float g = __fmul_rn(gradient, s.clip);
  const float p = __fmul_rn(w, s.decay);
  m = __fadd_rn(m, __fmul_rn(s.rest1, __fsub_rn(g, m)));
  v = __fadd_rn(__fmul_rn(v, s.beta2), __fmul_rn(__fmul_rn(s.rest2, g), g));
  const float denominator = __fadd_rn(__fdiv_rn(__fsqrt_rn(v), s.root), s.eps);
  w = __fadd_rn(p, __fdiv_rn(__fmul_rn(s.step, m), denominator));
}

template <class G, int N, bool kSplit, bool kCompute>
__device__ inline void update_at(const Update& u, const Numbers& s, Index i) {
  cuda::Vec<float, N> w, m = cuda::load_vec<N>(u.exp_avg + i), v = cuda::load_vec<N>(u.exp_avg_sq + i);
  const cuda::Vec<G, N> g = cuda::load_vec<N>(static_cast<const G*>(u.gradient) + i);
  cuda::Vec<__nv_bfloat16, N> hi;
  cuda::Vec<std::uint16_t, N> low;
  if constexpr (kSplit) {
    hi = cuda::load_vec<N>(u.compute + i);
    low = cuda::load_vec<N>(u.low + i);
#pragma unroll
    for (int j = 0; j < N; ++j) w.v[j] = cuda::join_master(hi.v[j], low.v[j]);
  } else {
    w = cuda::load_vec<N>(u.master + i);
  }
#pragma unroll
  for (int j = 0; j < N; ++j) update(s, cuda::to_float(g.v[j]), w.v[j], m.v[j], v.v[j]);
  cuda::store_vec<N>(u.exp_avg + i, m);
  cuda::store_vec<N>(u.exp_avg_sq + i, v);
  if constexpr (kSplit) {
#pragma unroll
    for (int j = 0; j < N; ++j) cuda::split_master(w.v[j], hi.v[j], low.v[j]);
    cuda::store_vec<N>(u.compute + i, hi);
    cuda::store_vec<N>(u.low + i, low);
  } else {
    cuda::store_vec<N>(u.master + i, w);
    if constexpr (kCompute) {
#pragma unroll
      for (int j = 0; j < N; ++j) hi.v[j] = __float2bfloat16_rn(w.v[j]);
      cuda::store_vec<N>(u.compute + i, hi);
    }
  }
}

template <class G, bool kSplit, bool kCompute>
__global__ void __launch_bounds__(kThreads) adamw_kernel(Update u, bool wide) {
  const float clip = u.scalars[1];
  if (!isfinite(clip)) return;
  const double lr = u.scalars[0];
  const Numbers s{.clip = clip,
                  .decay = static_cast<float>(1.0 - lr * u.weight_decay),
                  .step = static_cast<float>(-lr / u.scalars[2]),
                  .root = static_cast<float>(sqrt(static_cast<double>(u.scalars[3]))),
                  .rest1 = static_cast<float>(1.0 - static_cast<double>(u.beta1)),
                  .beta2 = u.beta2,
                  .rest2 = static_cast<float>(1.0 - static_cast<double>(u.beta2)),
                  .eps = u.eps};
  const Index thread = static_cast<Index>(blockIdx.x) * kThreads + threadIdx.x;
  const Index threads = static_cast<Index>(gridDim.x) * kThreads;
  const Index whole = wide ? u.n / kWide * kWide : 0;
  for (Index i = thread * kWide; i < whole; i += threads * kWide) update_at<G, kWide, kSplit, kCompute>(u, s, i);
  for (Index i = whole + thread; i < u.n; i += threads) update_at<G, 1, kSplit, kCompute>(u, s, i);
}

bool aligned(const void* p, std::size_t bytes) { return reinterpret_cast<std::uintptr_t>(p) % bytes == 0; }

}  // namespace

void run(Cuda, Stream& stream, const AdamW& op) {
  const bool split = op.low.defined(), compute = op.compute.defined();
  const Update u{.master = cuda::pointer<float>(op.master),
                 .exp_avg = op.exp_avg.as<float>(),
                 .exp_avg_sq = op.exp_avg_sq.as<float>(),
                 .gradient = op.gradient.data,
                 .compute = cuda::pointer<__nv_bfloat16>(op.compute),
                 .low = cuda::pointer<std::uint16_t>(op.low),
                 .scalars = op.scalars.as<float>(),
                 .beta1 = op.beta1,
                 .beta2 = op.beta2,
                 .eps = op.eps,
                 .weight_decay = op.weight_decay,
                 .n = op.exp_avg.dim(0)};
  if (u.n == 0) return;
  const bool wide = aligned(u.master, 16) && aligned(u.exp_avg, 16) && aligned(u.exp_avg_sq, 16) &&
                    aligned(u.gradient, kWide * size_of(op.gradient.dtype)) && aligned(u.compute, 8) &&
                    aligned(u.low, 8);
  constexpr Index kMostBlocks = 132 * 16;
  const unsigned blocks = cuda::grid(std::min(kMostBlocks, cuda::div_up(u.n, kThreads * kWide)));
  const cudaStream_t queue = cuda::stream_of(stream);
  cuda::dispatch_float(op.gradient.dtype, [&](auto zero) {
    using G = decltype(zero);
    if (split)
      adamw_kernel<G, true, true><<<blocks, kThreads, 0, queue>>>(u, wide);
    else if (compute)
      adamw_kernel<G, false, true><<<blocks, kThreads, 0, queue>>>(u, wide);
    else
      adamw_kernel<G, false, false><<<blocks, kThreads, 0, queue>>>(u, wide);
  });
  cuda::check_launch("adamw");
}

}  // namespace dstrain
