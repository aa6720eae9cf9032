#include "kernels/finite.h"

#include <cmath>
#include <limits>

#include "kernels/cuda/device/dispatch.cuh"

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
  if (x.dtype == DType::f64)
    finite_kernel<<<blocks, kThreads, 0, queue>>>(flag, flag64, x.as<double>(), most, r);
  else if (x.dtype == DType::f32)
    finite_kernel<<<blocks, kThreads, 0, queue>>>(flag, flag64, x.as<float>(), most, r);
  else
    finite_kernel<<<blocks, kThreads, 0, queue>>>(flag, flag64, cuda::pointer<__nv_bfloat16>(x), most, r);
  cuda::check_launch("finite_check");
}

}  // namespace dstrain
