#pragma once
// Storage types and pointers of tensors for kernels.

#include "kernels/cuda/device/launch.cuh"

namespace dstrain::cuda {

// Calls f(T{}) with T = float or __nv_bfloat16.
template <class F>
void dispatch_float(DType dtype, F&& f) {
  switch (dtype) {
    case DType::f32:
      return f(float{});
    case DType::bf16:
      return f(__nv_bfloat16{});
    default:
      check(false, "no kernel for {}", name_of(dtype));
  }
}

// The memory as T, which stands for the tensor's dtype; null stays null.
template <class T>
T* pointer(const Tensor& t) {
  return reinterpret_cast<T*>(t.data);
}

// Distance between rows of a (rows, C) tensor, in elements.
inline Index row_stride(const Tensor& t) { return t.rank() > 1 ? t.stride(-2) : 0; }

// A vector of float or bf16 that kernels read element by element.
struct FloatVector {
  const void* data = nullptr;
  bool half = false;
  explicit FloatVector(const Tensor& t) : data(t.data), half(t.dtype == DType::bf16) {}
  __device__ float operator[](Index i) const {
    return half ? __bfloat162float(static_cast<const __nv_bfloat16*>(data)[i]) : static_cast<const float*>(data)[i];
  }
};

inline unsigned grid(Index blocks) { return static_cast<unsigned>(blocks); }

}  // namespace dstrain::cuda
