#include "kernels/finite.h"

#include <cmath>
#include <limits>

#include "kernels/cuda/device/row_map.cuh"

namespace dstrain {

namespace {

constexpr int kThreads = 256;

struct Rows {
  Index dims[8], strides[8];  // all but the last, outermost first
  int rank;
  Index columns, rows;
};

template <class T>
__global__ void __launch_bounds__(kThreads)
    finite_kernel(std::int32_t* flag, double* flag64, const T* x, double most, Rows r) {
  const Index n = r.rows * r.columns;
  bool good = true;
  for (Index i = static_cast<Index>(blockIdx.x) * kThreads + threadIdx.x; i < n;
       i += static_cast<Index>(gridDim.x) * kThreads) {
    Index row = i / r.columns, offset = i % r.columns;
    for (int d = r.rank - 1; d >= 0; --d) {
      offset += row % r.dims[d] * r.strides[d];
      row /= r.dims[d];
    }
    // The comparison is false for what is not finite.
    if constexpr (sizeof(T) == 8)
      good = good && fabs(x[offset]) <= most;
    else
      good = good && fabsf(cuda::to_float(x[offset])) <= static_cast<float>(most);
  }
  if (good) return;
  if (flag64 != nullptr)
    *flag64 = 1;  // the same value from every thread
  else
    atomicOr(flag, 1);
}

// Flat memory, N elements at a time.
template <class T, int N>
__global__ void __launch_bounds__(kThreads)
    flat_finite_kernel(std::int32_t* flag, double* flag64, const T* x, float most, Index n) {
  bool good = true;
  for (Index i = (static_cast<Index>(blockIdx.x) * kThreads + threadIdx.x) * N; i < n;
       i += static_cast<Index>(gridDim.x) * kThreads * N) {
    const auto v = cuda::load_vec<N>(x + i);
#pragma unroll
    for (int j = 0; j < N; ++j) good = good && fabsf(cuda::to_float(v.v[j])) <= most;
  }
  if (good) return;
  if (flag64 != nullptr)
    *flag64 = 1;
  else
    atomicOr(flag, 1);
}

}  // namespace

void run(Cuda, Stream& stream, const FiniteCheck& op) {
  const Tensor& x = op.x;
  Rows r{.rank = x.rank() - 1, .columns = x.dim(-1), .rows = x.rows()};
  check(r.rank <= 8, "finite_check: {}", x.to_string());
  for (int d = 0; d < r.rank; ++d) r.dims[d] = x.dim(d), r.strides[d] = x.stride(d);
  const Index n = x.numel();
  if (n == 0) return;
  const unsigned blocks = cuda::grid(std::min<Index>(132 * 16, cuda::div_up(n, kThreads)));
  const bool wide = op.flag.dtype == DType::f64;
  std::int32_t* const flag = wide ? nullptr : op.flag.as<std::int32_t>();
  double* const flag64 = wide ? op.flag.as<double>() : nullptr;
  const double most = std::isfinite(op.most)  ? static_cast<double>(op.most)
                      : x.dtype == DType::f64 ? std::numeric_limits<double>::max()
                                              : static_cast<double>(std::numeric_limits<float>::max());
  const cudaStream_t queue = cuda::stream_of(stream);
  // As many whole vectors as there are; the few elements behind them by the kernel for any rows.
  const auto flat = [&](auto zero, auto width) {
    using T = decltype(zero);
    constexpr int kWidth = width;
    const Index whole = x.contiguous() && cuda::aligned_flat(x) ? n / kWidth * kWidth : 0;
    if (whole > 0)
      flat_finite_kernel<T, kWidth>
          <<<blocks, kThreads, 0, queue>>>(flag, flag64, cuda::pointer<T>(x), static_cast<float>(most), whole);
    if (whole > 0 && whole < n) {
      r = {.rank = 0, .columns = n - whole, .rows = 1};
      finite_kernel<<<1, kThreads, 0, queue>>>(flag, flag64, cuda::pointer<T>(x) + whole, most, r);
    }
    return whole > 0;
  };
  if (x.dtype == DType::f32 && flat(float{}, std::integral_constant<int, 4>{}))
    return cuda::check_launch("finite_check");
  if (x.dtype == DType::bf16 && flat(__nv_bfloat16{}, std::integral_constant<int, 8>{}))
    return cuda::check_launch("finite_check");
  if (x.dtype == DType::f64)
    finite_kernel<<<blocks, kThreads, 0, queue>>>(flag, flag64, x.as<double>(), most, r);
  else if (x.dtype == DType::f32)
    finite_kernel<<<blocks, kThreads, 0, queue>>>(flag, flag64, x.as<float>(), most, r);
  else
    finite_kernel<<<blocks, kThreads, 0, queue>>>(flag, flag64, cuda::pointer<__nv_bfloat16>(x), most, r);
  cuda::check_launch("finite_check");
}

}  // namespace dstrain
