#include "kernels/embedding.h"

#include "kernels/cuda/device/dispatch.cuh"

namespace dstrain {

namespace {

constexpr int kThreads = 256;

template <class T, int N>
__global__ void __launch_bounds__(kThreads)
    embedding_kernel(T* y, Index y_stride, const std::int32_t* tokens, const T* table, Index table_stride, Index rows,
                     Index columns, Index first, Index entries, bool accumulate) {
  for (Index row = blockIdx.x; row < rows; row += gridDim.x) {
    const Index entry = tokens[row] - first;
    const bool here = entry >= 0 && entry < entries;
    if (!here && accumulate) continue;
    T* const to = y + row * y_stride;
    const T* const from = table + (here ? entry : 0) * table_stride;
    for (Index c = static_cast<Index>(threadIdx.x) * N; c < columns; c += kThreads * N) {
      cuda::Vec<T, N> v{};
      if (here) v = cuda::load_vec<N>(from + c);
      if (accumulate) {
        const auto old = cuda::load_vec<N>(to + c);
#pragma unroll
        for (int j = 0; j < N; ++j) v.v[j] = cuda::from_float<T>(cuda::to_float(old.v[j]) + cuda::to_float(v.v[j]));
      }
      cuda::store_vec<N>(to + c, v);
    }
  }
}

// A block owns kIds entries of the table. It scans all tokens, lists the rows that name one of them in ascending order,
// and adds them entry by entry: one chain of sums an element, whatever the timing. A full list is worked off and begun
// anew.
constexpr int kIds = 32, kList = 2048;

template <class T, int N>
__global__ void __launch_bounds__(kThreads)
    embedding_backward_kernel(float* dtable, Index table_stride, const T* dy, Index dy_stride,
                              const std::int32_t* tokens, Index rows, Index columns, Index first, Index entries,
                              bool accumulate) {
  __shared__ std::int32_t listed_rows[kList];
  __shared__ std::uint8_t listed_ids[kList];
  __shared__ int warp_counts[kThreads / 32];
  __shared__ int listed;
  const Index begin = static_cast<Index>(blockIdx.x) * kIds, end = min(entries, begin + kIds);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  if (threadIdx.x == 0) listed = 0;
  __syncthreads();
  if (!accumulate)
    for (Index id = begin; id < end; ++id)
      for (Index c = static_cast<Index>(threadIdx.x) * N; c < columns; c += kThreads * N)
        cuda::store_vec<N>(dtable + id * table_stride + c, cuda::Vec<float, N>{});

  const auto work_off = [&] {
    for (Index id = begin; id < end; ++id)
      for (Index c = static_cast<Index>(threadIdx.x) * N; c < columns; c += kThreads * N) {
        cuda::Vec<float, N> sum;
        bool any = false;
        for (int i = 0; i < listed; ++i) {
          if (listed_ids[i] != id - begin) continue;
          if (!any) sum = cuda::load_vec<N>(dtable + id * table_stride + c);
          any = true;
          const auto v = cuda::load_vec<N>(dy + listed_rows[i] * dy_stride + c);
#pragma unroll
          for (int j = 0; j < N; ++j) sum.v[j] += cuda::to_float(v.v[j]);
        }
        if (any) cuda::store_vec<N>(dtable + id * table_stride + c, sum);
      }
  };

  for (Index tile = 0; tile < rows; tile += kThreads) {
    const Index row = tile + threadIdx.x;
    const Index entry = row < rows ? tokens[row] - first : -1;
    const bool mine = entry >= begin && entry < end;
    const unsigned votes = __ballot_sync(0xffffffffu, mine);
    if (lane == 0) warp_counts[warp] = __popc(votes);
    __syncthreads();
    int place = listed + __popc(votes & ((1u << lane) - 1));
    int total = 0;
    for (int w = 0; w < kThreads / 32; ++w) {
      if (w < warp) place += warp_counts[w];
      total += warp_counts[w];
    }
    if (mine) {
      listed_rows[place] = static_cast<std::int32_t>(row);
      listed_ids[place] = static_cast<std::uint8_t>(entry - begin);
    }
    __syncthreads();
    if (threadIdx.x == 0) listed += total;
    __syncthreads();
    if (listed > kList - kThreads) {
      work_off();
      __syncthreads();
      if (threadIdx.x == 0) listed = 0;
      __syncthreads();
    }
  }
  work_off();
}

}  // namespace

void run(Cuda, Stream& stream, const EmbeddingForward& op) {
  const Index rows = op.y.dim(0), columns = op.y.dim(1);
  if (rows == 0 || columns == 0) return;
  cuda::dispatch_float(op.y.dtype, [&](auto zero) {
    using T = decltype(zero);
    constexpr int N = 16 / sizeof(T);
    const bool wide = cuda::aligned_rows(op.y) && cuda::aligned_rows(op.table);
    const auto launch_kernel = [&](auto kernel) {
      kernel<<<cuda::grid(std::min<Index>(rows, 1 << 20)), kThreads, 0, cuda::stream_of(stream)>>>(
          cuda::pointer<T>(op.y), cuda::row_stride(op.y), op.tokens.as<std::int32_t>(), cuda::pointer<T>(op.table),
          cuda::row_stride(op.table), rows, columns, op.first_row, op.table.dim(0), op.write == Write::accumulate);
    };
    wide ? launch_kernel(embedding_kernel<T, N>) : launch_kernel(embedding_kernel<T, 1>);
  });
  cuda::check_launch("embedding");
}

void run(Cuda, Stream& stream, const EmbeddingBackward& op) {
  const Index rows = op.dy.dim(0), columns = op.dy.dim(1), entries = op.dtable.dim(0);
  check(rows < (Index{1} << 31), "embedding_backward: {} rows", rows);
  if (entries == 0 || columns == 0) return;
  cuda::dispatch_float(op.dy.dtype, [&](auto zero) {
    using T = decltype(zero);
    const bool wide = cuda::aligned_rows(op.dy) && cuda::aligned_rows(op.dtable);
    const auto launch_kernel = [&](auto kernel) {
      kernel<<<cuda::grid(cuda::div_up(entries, kIds)), kThreads, 0, cuda::stream_of(stream)>>>(
          op.dtable.as<float>(), cuda::row_stride(op.dtable), cuda::pointer<T>(op.dy), cuda::row_stride(op.dy),
          op.tokens.as<std::int32_t>(), rows, columns, op.first_row, entries, op.write == Write::accumulate);
    };
    wide ? launch_kernel(embedding_backward_kernel<T, 4>) : launch_kernel(embedding_backward_kernel<T, 1>);
  });
  cuda::check_launch("embedding_backward");
}

}  // namespace dstrain
