#pragma once
// What the CPU kernels share: dispatch over the storage type, rows, and parallel loops whose tiles depend on shapes
// only.

#include <algorithm>
#include <limits>
#include <type_traits>

#include "kernels/op.h"

namespace dstrain::cpu {

// Calls f(T{}) with T = float or bfloat16.
template <class F>
void dispatch_float(DType dtype, F&& f) {
  switch (dtype) {
    case DType::f32:
      return f(float{});
    case DType::bf16:
      return f(bfloat16{});
    default:
      check(false, "no kernel for {}", name_of(dtype));
  }
}

inline float to_float(float x) { return x; }
inline float to_float(bfloat16 x) { return static_cast<float>(x); }

// Row i of a matrix with dense rows; null stays null.
template <class T>
T* row(const Tensor& t, Index i) {
  return t.data == nullptr ? nullptr : reinterpret_cast<T*>(t.data) + i * t.stride(0);
}

// body(begin, end) over [0, n) in tiles of `tile`, in parallel.
template <class F>
void parallel_ranges(Stream& stream, Index n, Index tile, F&& body) {
  stream.pool().parallel_for((n + tile - 1) / tile, [&](Index i) { body(i * tile, std::min(n, (i + 1) * tile)); });
}

// body(row) for each row, in parallel; tiles hold about 32 Ki elements.
template <class F>
void parallel_rows(Stream& stream, Index rows, Index columns, F&& body) {
  parallel_ranges(stream, rows, std::max<Index>(1, 32768 / std::max<Index>(1, columns)), [&](Index begin, Index end) {
    for (Index i = begin; i < end; ++i) body(i);
  });
}

constexpr Index kFlatTile = 32768;  // elements of flat memory in a tile

template <class To, class From>
inline void convert(To* to, const From* from, Index n) {
#pragma omp simd
  for (Index i = 0; i < n; ++i) to[i] = static_cast<To>(to_float(from[i]));
}

// The vector in f32: its own memory, or a converted copy in the workspace.
inline const float* as_f32(Stream& stream, const Tensor& t) {
  if (t.dtype == DType::f32) return t.as<float>();
  const Tensor copy = stream.workspace().allocate(t.shape);
  convert(copy.as<float>(), t.as<bfloat16>(), t.numel());
  return copy.as<float>();
}

}  // namespace dstrain::cpu
