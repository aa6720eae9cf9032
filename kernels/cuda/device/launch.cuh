#pragma once
// What every kernel file needs: its stream, checked launches, 128-bit accesses, reductions of a block.

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/op.h"
#include "lib/core/cuda/check.h"

namespace dstrain::cuda {

inline cudaStream_t stream_of(const Stream& stream) { return static_cast<cudaStream_t>(stream.queue().handle()); }

// After every launch: throws Error{device} naming the kernel when the launch itself was refused.
inline void check_launch(const char* kernel) { cuda_check(cudaGetLastError(), kernel); }

inline constexpr Index div_up(Index a, Index b) { return (a + b - 1) / b; }

// The device type of a storage type.
template <DType T>
struct Storage;
template <>
struct Storage<DType::f32> {
  using type = float;
};
template <>
struct Storage<DType::bf16> {
  using type = __nv_bfloat16;
};

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
template <class T>
__device__ inline T from_float(float x) {
  if constexpr (sizeof(T) == 4)
    return x;
  else
    return __float2bfloat16_rn(x);
}

// N elements that are loaded and stored at once; N * sizeof(T) is at most 16 and a power of two.
template <class T, int N>
struct alignas(N * sizeof(T)) Vec {
  T v[N];
};
// Rounded to T, two at a time where there is an instruction for it.
template <class T, int N>
__device__ inline Vec<T, N> rounded(const Vec<float, N>& x) {
  Vec<T, N> out;
  if constexpr (sizeof(T) == 2 && N % 2 == 0) {
#pragma unroll
    for (int j = 0; j < N; j += 2) {
      const __nv_bfloat162 pair = __floats2bfloat162_rn(x.v[j], x.v[j + 1]);
      out.v[j] = pair.x;
      out.v[j + 1] = pair.y;
    }
  } else {
#pragma unroll
    for (int j = 0; j < N; ++j) out.v[j] = from_float<T>(x.v[j]);
  }
  return out;
}

// The word that one instruction moves. Copies of a Vec itself the compiler may cut into its members' size.
template <std::size_t kBytes>
using Word =
    std::conditional_t<kBytes == 16, uint4,
                       std::conditional_t<kBytes == 8, uint2,
                                          std::conditional_t<kBytes == 4, unsigned,
                                                             std::conditional_t<kBytes == 2, unsigned short, char>>>>;
template <int N, class T>
__device__ inline Word<N * sizeof(T)> load_word(const T* p) {
  return *reinterpret_cast<const Word<N * sizeof(T)>*>(p);
}
template <class T, int N>
__device__ inline Vec<T, N> vec_of(const Word<N * sizeof(T)>& word) {
  static_assert(sizeof(word) == sizeof(Vec<T, N>));
  return *reinterpret_cast<const Vec<T, N>*>(&word);
}
// Widened to float32, by one instruction an element.
template <class T, int N>
__device__ inline Vec<float, N> floats_of(const Word<N * sizeof(T)>& word) {
  if constexpr (sizeof(T) == 2 && N % 2 == 0) {
    const auto* const pairs = reinterpret_cast<const unsigned*>(&word);
    Vec<float, N> out;
#pragma unroll
    for (int j = 0; j < N; j += 2) {
      out.v[j] = __uint_as_float(pairs[j / 2] << 16);
      out.v[j + 1] = __uint_as_float(pairs[j / 2] & 0xffff0000u);
    }
    return out;
  } else {
    const auto v = vec_of<T, N>(word);
    Vec<float, N> out;
#pragma unroll
    for (int j = 0; j < N; ++j) out.v[j] = to_float(v.v[j]);
    return out;
  }
}
template <int N, class T>
__device__ inline Vec<T, N> load_vec(const T* p) {
  return vec_of<T, N>(load_word<N>(p));
}
// To global memory. The compiler would cut a store that it sees being put together from halves: it does not see these.
template <int N, class T>
__device__ inline void store_vec(T* p, const Vec<T, N>& v) {
  using W = Word<N * sizeof(T)>;
  const W word = *reinterpret_cast<const W*>(&v);
  if constexpr (sizeof(W) == 16)
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(p)), "r"(word.x),
                 "r"(word.y), "r"(word.z), "r"(word.w)
                 : "memory");
  else if constexpr (sizeof(W) == 8)
    asm volatile("st.global.v2.b32 [%0], {%1, %2};" ::"l"(__cvta_generic_to_global(p)), "r"(word.x), "r"(word.y)
                 : "memory");
  else
    *reinterpret_cast<W*>(p) = word;
}

// Whether base and every row start of a strided (rows, C) tensor are multiples of 16 bytes and C of 16 bytes' elements.
inline bool aligned_rows(const Tensor& t) {
  const auto bytes = size_of(t.dtype);
  return reinterpret_cast<std::uintptr_t>(t.data) % 16 == 0 &&
         static_cast<std::size_t>(t.rank() > 1 ? t.stride(-2) : 0) * bytes % 16 == 0 &&
         static_cast<std::size_t>(t.dim(-1)) * bytes % 16 == 0;
}

// Hides from the compiler that a word is what it was: what was made of it is made again, not kept in registers.
__device__ inline void forget(uint4& word) {
  asm volatile("" : "+r"(word.x), "+r"(word.y), "+r"(word.z), "+r"(word.w));
}

// Sum over a warp; every lane gets it. The order is fixed.
__device__ inline float warp_sum(float x) {
  for (int d = 16; d > 0; d /= 2) x += __shfl_xor_sync(0xffffffffu, x, d);
  return x;
}
__device__ inline double warp_sum(double x) {
  for (int d = 16; d > 0; d /= 2) x += __shfl_xor_sync(0xffffffffu, x, d);
  return x;
}
// Sums of M values over a warp at once, M a power of two: lane l gets that of value l / (32 / M). Lanes halve along
// with the values: M - 1 + log2(32 / M) exchanges instead of 5 M.
template <int M>
__device__ inline float warp_sums(float (&v)[M]) {
  int d = 16;
#pragma unroll
  for (int m = M; m > 1; m /= 2, d /= 2) {
    const bool upper = (threadIdx.x & d) != 0;
#pragma unroll
    for (int i = 0; i < m / 2; ++i) {
      const float mine = upper ? v[i + m / 2] : v[i], other = upper ? v[i] : v[i + m / 2];
      v[i] = mine + __shfl_xor_sync(0xffffffffu, other, d);
    }
  }
  float x = v[0];
#pragma unroll
  for (; d > 0; d /= 2) x += __shfl_xor_sync(0xffffffffu, x, d);
  return x;
}
__device__ inline float warp_max(float x) {
  for (int d = 16; d > 0; d /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, d));
  return x;
}

}  // namespace dstrain::cuda
