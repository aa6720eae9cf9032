#include "kernels/cuda/attention_wgmma.h"

#include "kernels/cuda/device/attention.cuh"
#include "kernels/cuda/device/attention_gradient.cuh"

// What stands around the kernel of device/attention_gradient.cuh: what it reads of each query is made before it, and
// dq, which it leaves in f32 and in the order of registers, is rounded after it.

namespace dstrain::cuda {

namespace {

using namespace attention_wgmma;

constexpr int kRowThreads = 256;

struct PrepareArgs {
  Heads o, dout;
  const float* lse;
  float *scaled_lse, *delta, *dq;
  int* next;
  Index rows, length, heads;
};

// Of every query: dout . o, -lse log2(e), and zeros for dq. D / 8 threads a query.
template <int D>
__global__ void __launch_bounds__(kRowThreads) prepare_kernel(PrepareArgs a) {
  constexpr int kLanes = D / 8;
  const Index i = static_cast<Index>(blockIdx.x) * kRowThreads + threadIdx.x, row = i / kLanes;
  if (i == 0) *a.next = 0;
  if (row >= a.rows) return;  // whole rows: kRowThreads is a multiple of kLanes
  const int lane = static_cast<int>(i % kLanes);
  const Index t = row % a.length, h = row / a.length % a.heads, b = row / a.length / a.heads;
  const auto x = load_vec<8>(a.o.at<const Half>(b, t, h) + lane * 8),
             y = load_vec<8>(a.dout.at<const Half>(b, t, h) + lane * 8);
  float sum = 0;
#pragma unroll
  for (int j = 0; j < 8; ++j) sum += to_float(x.v[j]) * to_float(y.v[j]);
  const unsigned together = __activemask();
#pragma unroll
  for (int d = kLanes / 2; d > 0; d /= 2) sum += __shfl_xor_sync(together, sum, d);
  if (lane == 0) {
    a.delta[row] = sum;
    a.scaled_lse[row] = -a.lse[row] * kLog2e;
  }
  float4* const zeros = reinterpret_cast<float4*>(a.dq) + i;
  const Index apart = a.rows * kLanes;
  zeros[0] = make_float4(0, 0, 0, 0);
  zeros[apart] = make_float4(0, 0, 0, 0);
}

// dq from the order of registers, scaled and rounded. A block makes the 8192 elements of a step.
template <int D>
__global__ void __launch_bounds__(256) finish_kernel(Heads out, const float* dq, int steps, int heads, float scale) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  constexpr int kQueries = Layout<D>::kQueries;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32 % 4, part = thread / 128;
  const int m = static_cast<int>(blockIdx.x) % steps, h = static_cast<int>(blockIdx.x) / steps % heads,
            b = static_cast<int>(blockIdx.x) / steps / heads;
  const float4* const from =
      reinterpret_cast<const float4*>(dq + static_cast<Index>(blockIdx.x) * 8192) + part * 1024 + thread % 128;
  float4 x[8];
#pragma unroll
  for (int j = 0; j < 8; ++j) x[j] = from[j * 128];
  const int row = m * kQueries + (D == 64 ? part * 64 : 0) + warp * 16 + lane / 4, column = D == 64 ? 0 : part * 64;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    Half* const line = out.at<Half>(b, row + 8 * half, h) + column;
#pragma unroll
    for (int j = 0; j < 8; j += 4) {
      std::uint32_t words[4];
#pragma unroll
      for (int i = 0; i < 4; ++i)
        words[i] = half ? rounded_pair(x[j + i].z * scale, x[j + i].w * scale)
                        : rounded_pair(x[j + i].x * scale, x[j + i].y * scale);
      transpose_quad(words);
      *reinterpret_cast<uint4*>(line + (j + lane % 4) * 8) = make_uint4(words[0], words[1], words[2], words[3]);
    }
  }
#endif
}

CUtensorMap head_map(const Tensor& t, int rows) {
  return tensor_map({.data = t.data,
                     .sizes = {t.dim(3), t.dim(0) * t.dim(1), t.dim(2)},
                     .strides = {t.stride(1) * 2, t.stride(2) * 2},
                     .box = {64, rows, 1}});
}

template <int D, bool kCausal>
void run_wgmma(Stream& stream, const AttentionBackward& op) {
  using L = Layout<D>;
  const Index samples = op.q.dim(0), length = op.q.dim(1), heads_ = op.q.dim(2), rows = samples * heads_ * length;
  const ArenaScope scope(stream.workspace());
  float* const dq = stream.workspace().allocate({rows * D}).as<float>();
  float* const delta = stream.workspace().allocate({rows}).as<float>();
  float* const lse = stream.workspace().allocate({rows}).as<float>();
  int* const next = stream.workspace().allocate({1}, DType::i32).as<std::int32_t>();
  start(stream, prepare_kernel<D>, div_up(rows * (D / 8), kRowThreads), kRowThreads, 0, AttentionBackward::name,
        PrepareArgs{.o = heads(op.o),
                    .dout = heads(op.dout),
                    .lse = op.lse.as<float>(),
                    .scaled_lse = lse,
                    .delta = delta,
                    .dq = dq,
                    .next = next,
                    .rows = rows,
                    .length = length,
                    .heads = heads_});
  const Index key_tiles = length / kKeys, tiles = samples * op.k.dim(2) * key_tiles, steps = length / L::kQueries;
  const GradientArgs args{.q = head_map(op.q, L::kQueries),
                          .dout = head_map(op.dout, L::kQueries),
                          .k = head_map(op.k, kKeys),
                          .v = head_map(op.v, kKeys),
                          .dk = pointer<Half>(op.dk),
                          .dv = pointer<Half>(op.dv),
                          .dk_row = op.dk.stride(1),
                          .dk_head = op.dk.stride(2),
                          .dv_row = op.dv.stride(1),
                          .dv_head = op.dv.stride(2),
                          .dq = dq,
                          .lse = lse,
                          .delta = delta,
                          .next = next,
                          .tiles = static_cast<int>(tiles),
                          .key_tiles = static_cast<int>(key_tiles),
                          .steps = static_cast<int>(steps),
                          .length = static_cast<int>(length),
                          .heads = static_cast<int>(heads_),
                          .key_heads = static_cast<int>(op.k.dim(2)),
                          .scale = op.scale};
  int device = 0, all = 0;
  cuda_check(cudaGetDevice(&device), AttentionBackward::name);
  cuda_check(cudaDeviceGetAttribute(&all, cudaDevAttrMultiProcessorCount, device), AttentionBackward::name);
  const Index blocks = std::max(1, all - stream.reserved_multiprocessors());
  start(stream, attention_gradient_kernel<D, kCausal>, std::min(blocks, tiles), kThreads, L::kShared,
        AttentionBackward::name, args);
  start(stream, finish_kernel<D>, samples * heads_ * steps, 256, 0, AttentionBackward::name, heads(op.dq), dq,
        static_cast<int>(steps), static_cast<int>(heads_), op.scale);
}

}  // namespace

bool has_wgmma_attention() {
  cudaFuncAttributes code{};
  cuda_check(cudaFuncGetAttributes(&code, attention_gradient_kernel<64, true>), "cudaFuncGetAttributes");
  return code.binaryVersion == 90;
}

void attention_backward_wgmma(Stream& stream, const AttentionBackward& op) {
  const bool causal = op.mask == AttentionMask::causal;
  if (op.q.dim(3) == 64)
    causal ? run_wgmma<64, true>(stream, op) : run_wgmma<64, false>(stream, op);
  else
    causal ? run_wgmma<128, true>(stream, op) : run_wgmma<128, false>(stream, op);
}

}  // namespace dstrain::cuda
