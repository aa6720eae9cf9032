#include "kernels/elementwise.h"

#include "kernels/cpu/loops.h"

namespace dstrain {

void run(Cpu, Stream& stream, const Add& op) {
  cpu::dispatch_float(op.y.dtype, [&](auto zero) {
    using T = decltype(zero);
    T* const y = op.y.as<T>();
    const T* const a = op.a.as<T>();
    const T* const b = op.b.as<T>();
    cpu::parallel_ranges(stream, op.y.numel(), cpu::kFlatTile, [&](Index begin, Index end) {
#pragma omp simd
      for (Index i = begin; i < end; ++i) y[i] = static_cast<T>(cpu::to_float(a[i]) + cpu::to_float(b[i]));
    });
  });
}

void run(Cpu, Stream& stream, const Cast& op) {
  cpu::dispatch_float(op.y.dtype, [&](auto to) {
    cpu::dispatch_float(op.x.dtype, [&](auto from) {
      auto* const y = op.y.as<decltype(to)>();
      const auto* const x = op.x.as<decltype(from)>();
      cpu::parallel_ranges(stream, op.y.numel(), cpu::kFlatTile,
                           [&](Index begin, Index end) { cpu::convert(y + begin, x + begin, end - begin); });
    });
  });
}

void run(Cpu, Stream& stream, const Fill& op) {
  const auto fill = [&](auto value) {
    auto* const y = op.y.as<decltype(value)>();
    cpu::parallel_ranges(stream, op.y.numel(), cpu::kFlatTile,
                         [&](Index begin, Index end) { std::fill(y + begin, y + end, value); });
  };
  if (op.y.dtype == DType::f64) return fill(static_cast<double>(op.value));
  cpu::dispatch_float(op.y.dtype, [&](auto zero) { fill(static_cast<decltype(zero)>(op.value)); });
}

namespace {

// Offset in elements of the i-th innermost row, rows counted in row-major order.
Index row_offset(const Tensor& t, Index i) {
  Index offset = 0;
  for (int d = t.rank() - 2; d >= 0; --d) {
    offset += i % t.dim(d) * t.stride(d);
    i /= t.dim(d);
  }
  return offset;
}

template <class T>
void copy(Stream& stream, const Copy& op) {
  const Index columns = op.y.rank() == 0 ? 1 : op.y.dim(-1);
  const Index x_step = op.x.rank() == 0 ? 1 : op.x.stride(-1), y_step = op.y.rank() == 0 ? 1 : op.y.stride(-1);
  if (columns == 0) return;
  cpu::parallel_rows(stream, op.y.numel() / columns, columns, [&](Index i) {
    T* const y = reinterpret_cast<T*>(op.y.data) + row_offset(op.y, i);
    const T* const x = reinterpret_cast<const T*>(op.x.data) + row_offset(op.x, i);
    if (x_step == 1 && y_step == 1) {
      std::copy(x, x + columns, y);
    } else {
      for (Index c = 0; c < columns; ++c) y[c * y_step] = x[c * x_step];
    }
  });
}

}  // namespace

void run(Cpu, Stream& stream, const Copy& op) {
  if (op.y.numel() == 0) return;
  switch (size_of(op.y.dtype)) {
    case 8:
      return copy<std::uint64_t>(stream, op);
    case 4:
      return copy<std::uint32_t>(stream, op);
    case 2:
      return copy<std::uint16_t>(stream, op);
    default:
      return copy<std::uint8_t>(stream, op);
  }
}

}  // namespace dstrain
