#include "kernels/finite.h"

#include <atomic>
#include <cmath>

#include "kernels/cpu/loops.h"

namespace dstrain {

namespace {

template <class T>
bool all_finite(const T* x, Index n) {
  bool good = true;
  for (Index i = 0; i < n; ++i) {
    if constexpr (std::is_same_v<T, bfloat16>)
      good = good && std::isfinite(static_cast<float>(x[i]));
    else
      good = good && std::isfinite(x[i]);
  }
  return good;
}

}  // namespace

void run(Cpu, Stream& stream, const FiniteCheck& op) {
  const Tensor& x = op.x;
  const Index columns = x.dim(-1), rows = x.rows();
  std::atomic<bool> good{true};
  cpu::parallel_rows(stream, rows, columns, [&](Index row) {
    Index rest = row, offset = 0;
    for (int d = x.rank() - 2; d >= 0; --d) {
      offset += rest % x.dim(d) * x.stride(d);
      rest /= x.dim(d);
    }
    const std::byte* const at = x.data + offset * static_cast<Index>(size_of(x.dtype));
    const bool fine = x.dtype == DType::f64   ? all_finite(reinterpret_cast<const double*>(at), columns)
                      : x.dtype == DType::f32 ? all_finite(reinterpret_cast<const float*>(at), columns)
                                              : all_finite(reinterpret_cast<const bfloat16*>(at), columns);
    if (!fine) good = false;
  });
  if (!good) *op.flag.as<std::int32_t>() = 1;
}

}  // namespace dstrain
