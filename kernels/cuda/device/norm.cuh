#pragma once
// RMSNorm and LayerNorm: the same kernels with and without a mean. A block takes a row, a thread N neighbouring
// elements K times; K = 0: any number of times, read again from memory instead of kept in registers.

#include "kernels/cuda/device/column_sums.cuh"
#include "kernels/cuda/device/norm_backward.cuh"
#include "kernels/norm_blocks.h"

namespace dstrain::cuda {

// The threads of a block for rows of `columns` in vectors of n, k a thread.
inline int norm_threads(Index columns, int n, int k) {
  return static_cast<int>(std::max<Index>(32, div_up(div_up(columns, n * k), 32) * 32));
}

// Calls f(vector width constant, vectors a thread constant, threads) for the row length. `wide`: all rows are aligned.
// kLeast: vectors a thread at least.
template <class T, int kLeast, class F>
void dispatch_norm(Index columns, bool wide, F&& f) {
  using std::integral_constant;
  constexpr int N = 16 / sizeof(T);
  if (wide) {
    if (kLeast == 1 && columns <= 256 * N)
      return f(integral_constant<int, N>{}, integral_constant<int, 1>{}, norm_threads(columns, N, 1));
    if (columns <= 512 * N)
      return f(integral_constant<int, N>{}, integral_constant<int, 2>{}, norm_threads(columns, N, 2));
    return f(integral_constant<int, N>{}, integral_constant<int, 0>{}, 512);
  }
  f(integral_constant<int, 1>{}, integral_constant<int, 0>{},
    static_cast<int>(std::min<Index>(512, norm_threads(columns, 1, 1))));
}

// `match`: weights and biases have the dtype T.
template <bool kLayer, class T>
void launch_norm_forward(cudaStream_t queue, const NormForwardArgs& a, Index rows, bool wide, bool match) {
  constexpr int kVectors = 32 * 16 / sizeof(T);  // columns of a warp's vectors
  if constexpr (kLayer) {
    if (wide && match && a.columns <= 8 * kVectors) {
      const auto start = [&](auto k) {
        layer_norm_warp_kernel<T, k><<<grid(div_up(rows, kWarpRows)), 32 * kWarpRows, 0, queue>>>(a, rows);
      };
      return [&]<int... k>(std::integer_sequence<int, k...>) {
        ((div_up(a.columns, kVectors) == k + 1 ? start(std::integral_constant<int, k + 1>{}) : void()), ...);
      }
      (std::make_integer_sequence<int, 8>{});
    }
  }
  dispatch_norm<T, 1>(a.columns, wide, [&](auto n, auto k, int threads) {
    norm_forward_kernel<kLayer, T, n, k><<<grid(rows), threads, 0, queue>>>(a);
  });
}

// `wide`: all rows are aligned and weights have the dtype T.
template <bool kLayer, class T>
void launch_norm_backward(cudaStream_t queue, const NormBackwardArgs& a, Index blocks, bool wide) {
  constexpr int N = 16 / sizeof(T);
  if (wide && a.columns <= 256 * N) {
    norm_pairs_backward_kernel<kLayer, T><<<grid(blocks), norm_threads(a.columns, N, 1), 0, queue>>>(a);
    return;
  }
  dispatch_norm<T, 2>(a.columns, wide, [&](auto n, auto k, int threads) {
    norm_backward_kernel<kLayer, T, n, k><<<grid(blocks), threads, 0, queue>>>(a);
  });
}

inline bool aligned_vector(const Tensor& t) {
  return !t.defined() || reinterpret_cast<std::uintptr_t>(t.data) % 16 == 0;
}
inline bool aligned_optional(const Tensor& t) { return !t.defined() || aligned_rows(t); }

// Both norms' forward: Op is RmsNormForward, or LayerNormForward when kLayer.
template <bool kLayer, class Op>
void norm_forward(Stream& stream, const Op& op) {
  const Index rows = op.x.dim(0), columns = op.x.dim(1);
  if (rows == 0) return;
  NormForwardArgs args{.y = op.y.data,
                       .sum = op.sum.data,
                       .x = op.x.data,
                       .branch = op.branch.data,
                       .weight = op.weight.data,
                       .rstd = op.rstd.template as<float>(),
                       .y_stride = row_stride(op.y),
                       .sum_stride = row_stride(op.sum),
                       .x_stride = row_stride(op.x),
                       .branch_stride = row_stride(op.branch),
                       .columns = columns,
                       .eps = op.eps,
                       .half_weight = op.weight.dtype == DType::bf16};
  bool wide = aligned_rows(op.x) && aligned_rows(op.y) && aligned_optional(op.branch) && aligned_optional(op.sum) &&
              aligned_vector(op.weight);
  bool match = op.weight.dtype == op.x.dtype;
  if constexpr (kLayer) {
    args.bias = op.bias.data;
    args.half_bias = op.bias.dtype == DType::bf16;
    args.mean = op.mean.template as<float>();
    wide = wide && aligned_vector(op.bias);
    match = match && op.bias.dtype == op.x.dtype;
  }
  dispatch_float(op.x.dtype, [&](auto zero) {
    launch_norm_forward<kLayer, decltype(zero)>(stream_of(stream), args, rows, wide, match);
  });
  check_launch(Op::name);
}

// Both norms' gradient.
template <bool kLayer, class Op>
void norm_backward(Stream& stream, const Op& op) {
  const Index rows = op.x.dim(0), columns = op.x.dim(1), blocks = norm_blocks(op.x);
  const ArenaScope scope(stream.workspace());
  float* const partial = stream.workspace().allocate({(kLayer ? 2 : 1) * blocks * columns}).template as<float>();
  NormBackwardArgs args{.dx = op.dx.data,
                        .dy = op.dy.data,
                        .x = op.x.data,
                        .dresidual = op.dresidual.data,
                        .weight = op.weight.data,
                        .rstd = op.rstd.template as<float>(),
                        .dweight = partial,
                        .dx_stride = row_stride(op.dx),
                        .dy_stride = row_stride(op.dy),
                        .x_stride = row_stride(op.x),
                        .dresidual_stride = row_stride(op.dresidual),
                        .rows = rows,
                        .columns = columns,
                        .half_weight = op.weight.dtype == DType::bf16};
  if constexpr (kLayer) {
    args.mean = op.mean.template as<float>();
    args.dbias = partial + blocks * columns;
  }
  const bool wide = aligned_rows(op.x) && aligned_rows(op.dy) && aligned_rows(op.dx) &&
                    aligned_optional(op.dresidual) && aligned_vector(op.weight) && op.weight.dtype == op.x.dtype;
  if (rows > 0) {
    dispatch_float(op.x.dtype, [&](auto zero) {
      launch_norm_backward<kLayer, decltype(zero)>(stream_of(stream), args, blocks, wide);
    });
    check_launch(Op::name);
  }
  if constexpr (kLayer)
    add_chunks(stream, {op.dweight.template as<float>(), op.dbias.template as<float>()}, partial, blocks, columns,
               op.write);
  else
    add_chunks(stream, {op.dweight.template as<float>()}, partial, blocks, columns, op.write);
}

}  // namespace dstrain::cuda
