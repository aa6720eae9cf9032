#include "kernels/cuda/matmul_kernels.h"

#include "kernels/cuda/device/row_map.cuh"
#include "kernels/cuda/matmul_parts.h"

namespace dstrain::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kSide = 32, kRowsAThread = kSide * kSide / kThreads;  // of a tile of c
constexpr unsigned kMostBlocks = 4096;                              // of loops over elements

struct Matrix {
  const void* data;
  Index row, column;  // strides of op(x)
};

Matrix matrix(const Tensor& t, bool transposed) {
  return {t.data, transposed ? 1 : t.stride(0), transposed ? t.stride(0) : 1};
}

struct PlainProduct {
  void* c;
  Index ldc, m, n, k, column_tiles;
  Matrix a, b;
  const void* bias;
  bool half_bias, accumulate;
};

__device__ inline float bias_at(const void* bias, bool half, Index j) {
  if (bias == nullptr) return 0.0f;
  return half ? to_float(static_cast<const __nv_bfloat16*>(bias)[j]) : static_cast<const float*>(bias)[j];
}

// A block makes a tile of c; a thread one column of it, every 8th row.
template <class A, class B, class C>
__global__ void __launch_bounds__(kThreads) plain_matmul_kernel(PlainProduct p) {
  __shared__ float a_tile[kSide][kSide + 1], b_tile[kSide][kSide + 1];
  const Index tile = blockIdx.x;
  const Index first_row = tile / p.column_tiles * kSide, first_column = tile % p.column_tiles * kSide;
  const int x = threadIdx.x % kSide, y = threadIdx.x / kSide;
  float sums[kRowsAThread] = {};
  for (Index l = 0; l < p.k; l += kSide) {
#pragma unroll
    for (int r = 0; r < kRowsAThread; ++r) {
      const int row = y + r * (kThreads / kSide);
      const Index ai = first_row + row, al = l + x, bl = l + row, bj = first_column + x;
      a_tile[row][x] =
          ai < p.m && al < p.k ? to_float(static_cast<const A*>(p.a.data)[ai * p.a.row + al * p.a.column]) : 0.0f;
      b_tile[row][x] =
          bl < p.k && bj < p.n ? to_float(static_cast<const B*>(p.b.data)[bl * p.b.row + bj * p.b.column]) : 0.0f;
    }
    __syncthreads();
    for (int s = 0; s < kSide; ++s) {
      const float b = b_tile[s][x];
#pragma unroll
      for (int r = 0; r < kRowsAThread; ++r) sums[r] = fmaf(a_tile[y + r * (kThreads / kSide)][s], b, sums[r]);
    }
    __syncthreads();
  }
  const Index j = first_column + x;
  if (j >= p.n) return;
  const float bias = bias_at(p.bias, p.half_bias, j);
#pragma unroll
  for (int r = 0; r < kRowsAThread; ++r) {
    const Index i = first_row + y + r * (kThreads / kSide);
    if (i >= p.m) break;
    C* const c = static_cast<C*>(p.c) + i * p.ldc + j;
    *c = from_float<C>((p.accumulate ? to_float(*c) : 0.0f) + (sums[r] + bias));
  }
}

template <class A, class B, class C>
void launch_plain(Stream& stream, const PlainProduct& p) {
  const Index tiles = div_up(p.m, kSide) * p.column_tiles;
  check(tiles < (Index{1} << 31), "plain matmul: {} x {} has too many tiles", p.m, p.n);
  plain_matmul_kernel<A, B, C><<<static_cast<unsigned>(tiles), kThreads, 0, stream_of(stream)>>>(p);
  check_launch("plain_matmul");
}

template <class A, class B>
void choose_c(Stream& stream, const PlainProduct& p, bool half) {
  half ? launch_plain<A, B, __nv_bfloat16>(stream, p) : launch_plain<A, B, float>(stream, p);
}
template <class A>
void choose_b(Stream& stream, const PlainProduct& p, bool half_b, bool half_c) {
  half_b ? choose_c<A, __nv_bfloat16>(stream, p, half_c) : choose_c<A, float>(stream, p, half_c);
}

unsigned blocks_for(Index elements) {
  return static_cast<unsigned>(std::min<Index>(div_up(elements, kThreads), kMostBlocks));
}

// One after another from the last: the smallest terms first.
template <class C, int N>
struct FinishMap {
  C* c;
  Index ldc;
  const float* product;
  Index ld, apart;
  int terms;
  const void* bias;
  bool half_bias, accumulate;

  __device__ void operator()(Index row, Index column) const {
    float sum[N] = {};
    for (int t = terms; t-- > 0;) {
      const auto v = load_vec<N>(product + t * apart + row * ld + column);
#pragma unroll
      for (int j = 0; j < N; ++j) sum[j] += v.v[j];
    }
    C* const out = c + row * ldc + column;
    Vec<C, N> y{};
    if (accumulate) y = load_vec<N>(out);
#pragma unroll
    for (int j = 0; j < N; ++j)
      y.v[j] = from_float<C>((accumulate ? to_float(y.v[j]) : 0.0f) + (sum[j] + bias_at(bias, half_bias, column + j)));
    store_vec<N>(out, y);
  }
};

__device__ inline __nv_bfloat16 upper_half(float x) {
  return __ushort_as_bfloat16(static_cast<unsigned short>(__float_as_uint(x) >> 16));
}
// x = the sum of the terms.
__device__ inline void cut(float x, __nv_bfloat16 (&terms)[kTerms]) {
  if (!isfinite(x)) {
    terms[0] = from_float<__nv_bfloat16>(x);
    terms[1] = terms[2] = from_float<__nv_bfloat16>(0.0f);
    return;
  }
#pragma unroll
  for (int t = 0; t < kTerms; ++t) {
    terms[t] = upper_half(x);
    x -= to_float(terms[t]);  // exact: what is left has the bits that were cut off
  }
}
__device__ inline void cut(__nv_bfloat16 x, __nv_bfloat16 (&terms)[kTerms]) {
#pragma unroll
  for (int t = 0; t < kTerms; ++t) terms[t] = x;
}

template <class T, int N>
struct StackMap {
  __nv_bfloat16* y;
  Index ldy, apart;
  const T* x;
  Index ldx;

  __device__ void operator()(Index row, Index column) const {
    const auto v = load_vec<N>(x + row * ldx + column);
    Vec<__nv_bfloat16, N> out[kTerms];
#pragma unroll
    for (int j = 0; j < N; ++j) {
      __nv_bfloat16 terms[kTerms];
      cut(v.v[j], terms);
#pragma unroll
      for (int t = 0; t < kTerms; ++t) out[t].v[j] = terms[t];
    }
#pragma unroll
    for (int t = 0; t < kTerms; ++t) store_vec<N>(y + t * apart + row * ldy + column, out[t]);
  }
};

// Whether vectors of n elements may start at every n-th of each row.
bool in_vectors(const Tensor& t, Index n) {
  return reinterpret_cast<std::uintptr_t>(t.data) % (static_cast<std::size_t>(n) * size_of(t.dtype)) == 0 &&
         t.stride(0) % n == 0 && t.dim(1) % n == 0;
}

struct WidenMap {
  float* y;
  const __nv_bfloat16* x;
  __device__ void operator()(Index i) const { y[i] = to_float(x[i]); }
};

__device__ inline unsigned long long mix(unsigned long long x) {  // the finaliser of SplitMix64
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

__device__ inline unsigned bits_of(float x) { return __float_as_uint(x); }
__device__ inline unsigned bits_of(__nv_bfloat16 x) { return __bfloat16_as_ushort(x); }

template <class T>
__global__ void checksum_kernel(const T* t, Index ld, Index rows, Index columns, unsigned long long* sums) {
  const Index step = static_cast<Index>(gridDim.x) * blockDim.x;
  unsigned long long hash = 0, live = 0;
  for (Index e = static_cast<Index>(blockIdx.x) * blockDim.x + threadIdx.x; e < rows * columns; e += step) {
    const T value = t[e / columns * ld + e % columns];
    hash += mix(mix(static_cast<unsigned long long>(e)) + bits_of(value));
    const float x = to_float(value);
    live += x != 0.0f && isfinite(x) ? 1 : 0;
  }
  // Sums of integers: the same in any order.
  atomicAdd(sums, hash);
  atomicAdd(sums + 1, live);
}

}  // namespace

void plain_matmul(Stream& stream, const Matmul& op) {
  const PlainProduct p{.c = op.c.data,
                       .ldc = op.c.stride(0),
                       .m = op.m(),
                       .n = op.n(),
                       .k = op.k(),
                       .column_tiles = div_up(op.n(), kSide),
                       .a = matrix(op.a, op.transpose_a),
                       .b = matrix(op.b, op.transpose_b),
                       .bias = op.bias.data,
                       .half_bias = op.bias.dtype == DType::bf16,
                       .accumulate = op.write == Write::accumulate};
  if (p.m == 0 || p.n == 0) return;
  const bool half_b = op.b.dtype == DType::bf16, half_c = op.c.dtype == DType::bf16;
  op.a.dtype == DType::bf16 ? choose_b<__nv_bfloat16>(stream, p, half_b, half_c)
                            : choose_b<float>(stream, p, half_b, half_c);
}

void finish_product(Stream& stream, const Tensor& c, const Tensor& product, const Tensor& bias, Write write) {
  const Index m = c.dim(0), n = c.dim(1);
  if (m * n == 0) return;
  const bool below = product.dim(0) > m;
  const Index terms = below ? product.dim(0) / m : product.dim(1) / n, apart = below ? m * product.stride(0) : n;
  dispatch_float(c.dtype, [&](auto zero) {
    using C = decltype(zero);
    const auto run = [&](auto width) {
      row_map<width>(stream, m, n, "finish_product",
                     FinishMap<C, width>{pointer<C>(c), c.stride(0), product.as<float>(), product.stride(0), apart,
                                         static_cast<int>(terms), bias.data, bias.dtype == DType::bf16,
                                         write == Write::accumulate});
    };
    const bool wide = in_vectors(c, 4) && in_vectors(product, 4) && n % 4 == 0;
    wide ? run(std::integral_constant<int, 4>{}) : run(std::integral_constant<int, 1>{});
  });
}

void widen(Stream& stream, const Tensor& y, const Tensor& x) {
  flat_map<1>(stream, x.numel(), "widen", WidenMap{y.as<float>(), pointer<__nv_bfloat16>(x)});
}

void stack_terms(Stream& stream, const Tensor& y, const Tensor& x, bool below) {
  const Index rows = x.dim(0), columns = x.dim(1), apart = below ? rows * y.stride(0) : columns;
  dispatch_float(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    const auto run = [&](auto width) {
      row_map<width>(stream, rows, columns, "stack_terms",
                     StackMap<T, width>{pointer<__nv_bfloat16>(y), y.stride(0), apart, pointer<T>(x), x.stride(0)});
    };
    const bool wide = in_vectors(x, 4) && in_vectors(y, 4) && columns % 4 == 0;
    wide ? run(std::integral_constant<int, 4>{}) : run(std::integral_constant<int, 1>{});
  });
}

void add_checksum(Stream& stream, const Tensor& t, unsigned long long* sums) {
  if (t.numel() == 0) return;
  const unsigned blocks = blocks_for(t.numel());
  if (t.dtype == DType::bf16)
    checksum_kernel<<<blocks, kThreads, 0, stream_of(stream)>>>(reinterpret_cast<const __nv_bfloat16*>(t.data),
                                                                t.stride(0), t.dim(0), t.dim(1), sums);
  else
    checksum_kernel<<<blocks, kThreads, 0, stream_of(stream)>>>(t.as<float>(), t.stride(0), t.dim(0), t.dim(1), sums);
  check_launch("add_checksum");
}

}  // namespace dstrain::cuda
