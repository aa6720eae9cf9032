#pragma once
// Tensor: a non-owning view of elements in some device's memory. Only Buffer and Arena own memory.

#include <cstddef>
#include <string>

#include "lib/core/device.h"
#include "lib/core/dtype.h"
#include "lib/core/errors.h"
#include "lib/core/shape.h"

namespace dstrain {

struct Tensor {
  std::byte* data = nullptr;  // on Device::dry an address that is never read
  DType dtype = DType::f32;
  Device device = Device::cpu;
  Shape shape;
  Shape strides;  // in elements; the last one is 1

  Tensor() = default;
  // A contiguous view.
  Tensor(void* memory, DType type, Device where, const Shape& dims);

  bool defined() const { return data != nullptr; }
  int rank() const { return shape.rank(); }
  Index numel() const { return shape.numel(); }
  Index dim(int i) const { return shape[i < 0 ? i + shape.rank() : i]; }
  Index stride(int i) const { return strides[i < 0 ? i + shape.rank() : i]; }
  std::size_t bytes() const { return static_cast<std::size_t>(numel()) * size_of(dtype); }
  bool contiguous() const;
  // Product of all dimensions but the last.
  Index rows() const { return rank() == 0 ? 1 : numel() / (dim(-1) == 0 ? 1 : dim(-1)); }

  // The elements, when T is the dtype and the memory is readable by the host.
  template <class T>
  T* as() const {
    check(dtype == dtype_of<T>(), "tensor is {}, asked for {}", name_of(dtype), name_of(dtype_of<T>()));
    return reinterpret_cast<T*>(data);
  }

  // The same elements in another shape. REQUIRES: contiguous(), equal numel.
  Tensor view(const Shape& dims) const;
  // Elements [begin, end) of dimension `d`.
  Tensor slice(int d, Index begin, Index end) const;
  // Splits the last dimension into (outer, last / outer) without copying: (.., W) -> (.., outer, W / outer).
  Tensor split_last(Index outer) const;
  std::string to_string() const;  // "f32 (2, 3) on cpu"
};

// Throws Error{bug} naming `what`, the expected and the found shape, unless they are equal.
void check_shape(const Tensor& t, const Shape& expected, const char* what);
// The same for dtype.
void check_dtype(const Tensor& t, DType expected, const char* what);

}  // namespace dstrain
