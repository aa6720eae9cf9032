#include "kernels/finite.h"

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
__global__ void __launch_bounds__(kThreads) finite_kernel(std::int32_t* flag, const T* x, Rows r) {
  const Index n = r.rows * r.columns;
  bool good = true;
  for (Index i = static_cast<Index>(blockIdx.x) * kThreads + threadIdx.x; i < n;
       i += static_cast<Index>(gridDim.x) * kThreads) {
    Index row = i / r.columns, offset = i % r.columns;
    for (int d = r.rank - 1; d >= 0; --d) {
      offset += row % r.dims[d] * r.strides[d];
      row /= r.dims[d];
    }
    if constexpr (sizeof(T) == 8)
      good = good && isfinite(x[offset]);
    else
      good = good && isfinite(cuda::to_float(x[offset]));
  }
  if (!good) atomicOr(flag, 1);
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
  std::int32_t* const flag = op.flag.as<std::int32_t>();
  const cudaStream_t queue = cuda::stream_of(stream);
  if (x.dtype == DType::f64)
    finite_kernel<<<blocks, kThreads, 0, queue>>>(flag, x.as<double>(), r);
  else if (x.dtype == DType::f32)
    finite_kernel<<<blocks, kThreads, 0, queue>>>(flag, x.as<float>(), r);
  else
    finite_kernel<<<blocks, kThreads, 0, queue>>>(flag, cuda::pointer<__nv_bfloat16>(x), r);
  cuda::check_launch("finite_check");
}

}  // namespace dstrain
