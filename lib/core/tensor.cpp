#include "lib/core/tensor.h"

namespace dstrain {

std::string Shape::to_string() const {
  std::string s = "(";
  for (int i = 0; i < rank_; ++i) s += (i ? ", " : "") + std::to_string((*this)[i]);
  return s + ")";
}

namespace {
Shape contiguous_strides(const Shape& dims) {
  Shape strides = dims;
  Index step = 1;
  for (int i = dims.rank() - 1; i >= 0; --i) {
    strides[i] = step;
    step *= dims[i];
  }
  return strides;
}
}  // namespace

Tensor::Tensor(void* memory, DType type, Device where, const Shape& dims)
    : data(static_cast<std::byte*>(memory)),
      dtype(type),
      device(where),
      shape(dims),
      strides(contiguous_strides(dims)) {}

bool Tensor::contiguous() const {
  Index step = 1;
  for (int i = rank() - 1; i >= 0; --i) {
    if (shape[i] != 1 && strides[i] != step) return false;
    step *= shape[i];
  }
  return true;
}

Tensor Tensor::view(const Shape& dims) const {
  check(contiguous(), "view of {} with gaps", to_string());
  check(dims.numel() == numel(), "view of {} as {}", to_string(), dims.to_string());
  return Tensor(data, dtype, device, dims);
}

Tensor Tensor::slice(int d, Index begin, Index end) const {
  if (d < 0) d += rank();
  check(0 <= begin && begin <= end && end <= shape[d], "slice [{}, {}) of dimension {} of {}", begin, end, d,
        to_string());
  Tensor t = *this;
  t.data += static_cast<std::size_t>(begin * strides[d]) * size_of(dtype);
  t.shape[d] = end - begin;
  return t;
}

Tensor Tensor::split_last(Index outer) const {
  const Index last = dim(-1);
  check(outer > 0 && last % outer == 0, "{} does not divide the last dimension of {}", outer, to_string());
  Tensor t = *this;
  t.shape[rank() - 1] = outer;
  t.shape.push_back(last / outer);
  t.strides[rank() - 1] = last / outer;
  t.strides.push_back(1);
  return t;
}

std::string Tensor::to_string() const {
  return std::string(name_of(dtype)) + " " + shape.to_string() + " on " + name_of(device);
}

void check_shape(const Tensor& t, const Shape& expected, const char* what) {
  check(t.shape == expected, "{} has shape {}, expected {}", what, t.shape.to_string(), expected.to_string());
}

void check_dtype(const Tensor& t, DType expected, const char* what) {
  check(t.dtype == expected, "{} is {}, expected {}", what, name_of(t.dtype), name_of(expected));
}

}  // namespace dstrain
