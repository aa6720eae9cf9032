#include "kernels/finite.h"

#include <atomic>
#include <cmath>

#include "kernels/cpu/loops.h"

namespace dstrain {

namespace {

// `most` is finite: a comparison with it is false for what is not.
template <class T>
bool all_within(const T* x, Index n, double most) {
  using Real = std::conditional_t<std::is_same_v<T, double>, double, float>;
  const auto bound = static_cast<Real>(most);
  int bad = 0;
#pragma omp simd reduction(| : bad)
  for (Index i = 0; i < n; ++i) bad |= std::fabs(static_cast<Real>(x[i])) <= bound ? 0 : 1;
  return bad == 0;
}

}  // namespace

void run(Cpu, Stream& stream, const FiniteCheck& op) {
  const Tensor& x = op.x;
  const Index columns = x.dim(-1), rows = x.rows();
  const double most = std::isfinite(op.most)  ? static_cast<double>(op.most)
                      : x.dtype == DType::f64 ? std::numeric_limits<double>::max()
                                              : static_cast<double>(std::numeric_limits<float>::max());
  std::atomic<bool> good{true};
  cpu::parallel_rows(stream, rows, columns, [&](Index row) {
    Index rest = row, offset = 0;
    for (int d = x.rank() - 2; d >= 0; --d) {
      offset += rest % x.dim(d) * x.stride(d);
      rest /= x.dim(d);
    }
    const std::byte* const at = x.data + offset * static_cast<Index>(size_of(x.dtype));
    const bool fine = x.dtype == DType::f64   ? all_within(reinterpret_cast<const double*>(at), columns, most)
                      : x.dtype == DType::f32 ? all_within(reinterpret_cast<const float*>(at), columns, most)
                                              : all_within(reinterpret_cast<const bfloat16*>(at), columns, most);
    if (!fine) good = false;
  });
  if (good) return;
  if (op.flag.dtype == DType::f64)
    *op.flag.as<double>() = 1;
  else
    *op.flag.as<std::int32_t>() = 1;
}

}  // namespace dstrain
