#include "kernels/rms_norm.h"

#include "kernels/cuda/device/norm.cuh"

namespace dstrain {

void run(Cuda, Stream& stream, const RmsNormForward& op) {
  const Index rows = op.x.dim(0), columns = op.x.dim(1);
  if (rows == 0) return;
  const cuda::NormForwardArgs args{.y = op.y.data,
                                   .sum = op.sum.data,
                                   .x = op.x.data,
                                   .branch = op.branch.data,
                                   .weight = op.weight.data,
                                   .rstd = op.rstd.as<float>(),
                                   .y_stride = cuda::row_stride(op.y),
                                   .sum_stride = cuda::row_stride(op.sum),
                                   .x_stride = cuda::row_stride(op.x),
                                   .branch_stride = cuda::row_stride(op.branch),
                                   .columns = columns,
                                   .eps = op.eps,
                                   .half_weight = op.weight.dtype == DType::bf16};
  const bool wide = cuda::aligned_rows(op.x) && cuda::aligned_rows(op.y) && cuda::aligned_optional(op.branch) &&
                    cuda::aligned_optional(op.sum) && cuda::aligned_vector(op.weight);
  cuda::dispatch_float(op.x.dtype, [&](auto zero) {
    using T = decltype(zero);
    cuda::dispatch_norm<T>(columns, wide, [&](auto n, auto k, int threads) {
      cuda::norm_forward_kernel<false, T, n, k><<<cuda::grid(rows), threads, 0, cuda::stream_of(stream)>>>(args);
    });
  });
  cuda::check_launch("rms_norm");
}

void run(Cuda, Stream& stream, const RmsNormBackward& op) {
  const Index rows = op.x.dim(0), columns = op.x.dim(1), blocks = cuda::norm_blocks(rows, columns);
  const ArenaScope scope(stream.workspace());
  float* const partial = stream.workspace().allocate({blocks * columns}).as<float>();
  const cuda::NormBackwardArgs args{.dx = op.dx.data,
                                    .dy = op.dy.data,
                                    .x = op.x.data,
                                    .dresidual = op.dresidual.data,
                                    .weight = op.weight.data,
                                    .rstd = op.rstd.as<float>(),
                                    .dweight = partial,
                                    .dx_stride = cuda::row_stride(op.dx),
                                    .dy_stride = cuda::row_stride(op.dy),
                                    .x_stride = cuda::row_stride(op.x),
                                    .dresidual_stride = cuda::row_stride(op.dresidual),
                                    .rows = rows,
                                    .columns = columns,
                                    .half_weight = op.weight.dtype == DType::bf16};
  const bool wide = cuda::aligned_rows(op.x) && cuda::aligned_rows(op.dy) && cuda::aligned_rows(op.dx) &&
                    cuda::aligned_optional(op.dresidual) && cuda::aligned_vector(op.weight);
  if (rows > 0) {
    cuda::dispatch_float(op.x.dtype, [&](auto zero) {
      using T = decltype(zero);
      cuda::dispatch_norm<T>(columns, wide, [&](auto n, auto k, int threads) {
        cuda::norm_backward_kernel<false, T, n, k><<<cuda::grid(blocks), threads, 0, cuda::stream_of(stream)>>>(args);
      });
    });
    cuda::check_launch("rms_norm_backward");
  }
  cuda::add_chunks(stream, op.dweight.as<float>(), partial, blocks, columns, op.write);
}

}  // namespace dstrain
