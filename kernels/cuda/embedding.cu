#include "kernels/embedding.h"

#include <algorithm>

#include "kernels/cuda/device/dispatch.cuh"

namespace dstrain {

namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr unsigned kAll = 0xffffffffu;
constexpr int kRows = 4;  // rows of a block of the forward pass: their loads are in flight together

template <class T, int N>
__global__ void __launch_bounds__(kThreads)
    embedding_kernel(T* y, Index y_stride, const std::int32_t* tokens, const T* table, Index table_stride, Index rows,
                     Index columns, Index first, Index entries, bool accumulate) {
  const Index begin = static_cast<Index>(blockIdx.x) * kRows;
  Index entry[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    entry[r] = begin + r < rows ? tokens[begin + r] - first : -1;
    if (entry[r] >= entries) entry[r] = -1;
  }
  for (Index c = static_cast<Index>(threadIdx.x) * N; c < columns; c += static_cast<Index>(blockDim.x) * N) {
    cuda::Word<N * sizeof(T)> words[kRows] = {}, old[kRows] = {};
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (entry[r] >= 0) words[r] = cuda::load_word<N>(table + entry[r] * table_stride + c);
      if (accumulate && entry[r] >= 0) old[r] = cuda::load_word<N>(y + (begin + r) * y_stride + c);
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (begin + r >= rows || (accumulate && entry[r] < 0)) continue;
      cuda::Vec<T, N> v = cuda::vec_of<T, N>(words[r]);
      if (accumulate) {
        const auto before = cuda::vec_of<T, N>(old[r]);
#pragma unroll
        for (int j = 0; j < N; ++j) v.v[j] = cuda::from_float<T>(cuda::to_float(before.v[j]) + cuda::to_float(v.v[j]));
      }
      cuda::store_vec<N>(y + (begin + r) * y_stride + c, v);
    }
  }
}

// Backward: a block owns `ids` entries of the table, at most kIds. It scans all tokens and lists the rows that name one
// of its entries, in ascending order; then the list is sorted by entry, stably, and its warps share out the entries'
// columns: one chain of sums an element, rows ascending, whatever the timing. A full list is worked off and begun anew.
constexpr int kIds = 32, kList = 2048, kScan = 4, kTile = kScan * kThreads;

struct Gradient {
  float* dtable;
  Index table_stride, dy_stride;
  const std::int32_t* tokens;
  Index rows, columns, first, entries, frozen;
  int ids;
  bool accumulate;
};

// Lane i gets the sum of `count` over the lanes before it.
__device__ inline int sum_before(int count, int lane) {
  int sum = count;
  for (int d = 1; d < 32; d *= 2) {
    const int other = __shfl_up_sync(kAll, sum, d);
    if (lane >= d) sum += other;
  }
  return sum - count;
}

template <class T, int N>
__global__ void __launch_bounds__(kThreads, 4) embedding_backward_kernel(const T* dy, Gradient g) {
  __shared__ std::int32_t listed_rows[kList], sorted_rows[kList];
  __shared__ std::uint8_t listed_ids[kList];
  __shared__ int votes_of[2][32], count_of[kIds];
  static_assert(kScan * kWarps == 32);
  const Index begin = static_cast<Index>(blockIdx.x) * g.ids;
  const int ids = static_cast<int>(min(static_cast<Index>(g.ids), g.entries - begin));
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const unsigned before = (1u << lane) - 1;
  int listed = 0;              // the same in every thread
  bool fresh = !g.accumulate;  // the entries hold nothing yet

  const auto work_off = [&] {
    __syncthreads();
    const auto matches = [&](int i, int id) { return __ballot_sync(kAll, i < listed && listed_ids[i] == id); };
    for (int id = warp; id < ids; id += kWarps) {
      int count = 0;
      for (int i = lane; i - lane < listed; i += 32) count += __popc(matches(i, id));
      if (lane == 0) count_of[id] = count;
    }
    __syncthreads();
    const int count = lane < ids ? count_of[lane] : 0, start = sum_before(count, lane);
    for (int id = warp; id < ids; id += kWarps) {
      int at = __shfl_sync(kAll, start, id);
      for (int i = lane; i - lane < listed; i += 32) {
        const unsigned found = matches(i, id);
        if (found >> lane & 1) sorted_rows[at + __popc(found & before)] = listed_rows[i];
        at += __popc(found);
      }
    }
    __syncthreads();
    const int pieces = static_cast<int>((g.columns + 32 * N - 1) / (32 * N));
    for (int item = warp; item < ids * pieces; item += kWarps) {
      const int id = item / pieces;
      const int n = __shfl_sync(kAll, count, id), from = __shfl_sync(kAll, start, id);
      const Index c = (static_cast<Index>(item - id * pieces) * 32 + lane) * N;
      if (c >= g.columns || (n == 0 && !fresh)) continue;
      float* const to = g.dtable + (begin + id) * g.table_stride + c;
      cuda::Vec<float, N> sum{};
      if (!fresh) sum = cuda::load_vec<N>(to);
      constexpr int kAhead = 8;  // loads in flight
      for (int i = 0; i < n; i += kAhead) {
        cuda::Word<N * sizeof(T)> words[kAhead] = {};
#pragma unroll
        for (int k = 0; k < kAhead; ++k)
          if (i + k < n) words[k] = cuda::load_word<N>(dy + sorted_rows[from + i + k] * g.dy_stride + c);
#pragma unroll
        for (int k = 0; k < kAhead; ++k) {
          if (i + k >= n) break;
          const auto v = cuda::vec_of<T, N>(words[k]);
#pragma unroll
          for (int j = 0; j < N; ++j) sum.v[j] += cuda::to_float(v.v[j]);
        }
      }
      cuda::store_vec<N>(to, sum);
    }
    __syncthreads();
    fresh = false;
    listed = 0;
  };

  // Thread t looks at rows t, t + 256, .. of a tile; the next tile is on its way meanwhile.
  Index entry[kScan], next[kScan];
  const auto look = [&](Index tile, Index* to) {
#pragma unroll
    for (int s = 0; s < kScan; ++s) {
      const Index row = tile + s * kThreads + threadIdx.x;
      const Index token = row < g.rows ? g.tokens[row] : g.frozen;
      to[s] = token == g.frozen ? -1 : token - g.first - begin;
    }
  };
  look(0, next);
  for (Index tile = 0, turn = 0; tile < g.rows; tile += kTile, turn ^= 1) {
#pragma unroll
    for (int s = 0; s < kScan; ++s) entry[s] = next[s];
    look(tile + kTile, next);
    unsigned votes[kScan];
#pragma unroll
    for (int s = 0; s < kScan; ++s) {
      votes[s] = __ballot_sync(kAll, entry[s] >= 0 && entry[s] < ids);
      if (lane == 0) votes_of[turn][s * kWarps + warp] = __popc(votes[s]);
    }
    __syncthreads();
    const int count = votes_of[turn][lane], earlier = sum_before(count, lane);
    const int total = __shfl_sync(kAll, earlier + count, 31);
#pragma unroll
    for (int s = 0; s < kScan; ++s) {
      const int place = listed + __shfl_sync(kAll, earlier, s * kWarps + warp) + __popc(votes[s] & before);
      if (votes[s] >> lane & 1) {
        listed_rows[place] = static_cast<std::int32_t>(tile + s * kThreads + threadIdx.x);
        listed_ids[place] = static_cast<std::uint8_t>(entry[s]);
      }
    }
    listed += total;
    if (listed > kList - kTile) work_off();
  }
  if (listed > 0 || fresh) work_off();
}

// As many entries a block as leave a thousand blocks, whatever the GPU; the sums do not depend on it.
int ids_of(Index entries) { return static_cast<int>(std::clamp<Index>(entries / 1024, 1, kIds)); }

}  // namespace

void run(Cuda, Stream& stream, const EmbeddingForward& op) {
  const Index rows = op.y.dim(0), columns = op.y.dim(1);
  if (rows == 0 || columns == 0) return;
  cuda::dispatch_float(op.y.dtype, [&](auto zero) {
    using T = decltype(zero);
    constexpr int N = 16 / sizeof(T);
    const bool wide = cuda::aligned_rows(op.y) && cuda::aligned_rows(op.table);
    const auto launch_kernel = [&](auto kernel) {
      const Index vectors = cuda::div_up(columns, wide ? N : 1);
      const int threads = static_cast<int>(std::min<Index>(kThreads, cuda::div_up(vectors, 32) * 32));
      kernel<<<cuda::grid(cuda::div_up(rows, kRows)), threads, 0, cuda::stream_of(stream)>>>(
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
    const Gradient g{.dtable = op.dtable.as<float>(),
                     .table_stride = cuda::row_stride(op.dtable),
                     .dy_stride = cuda::row_stride(op.dy),
                     .tokens = op.tokens.as<std::int32_t>(),
                     .rows = rows,
                     .columns = columns,
                     .first = op.first_row,
                     .entries = entries,
                     .frozen = op.frozen,
                     .ids = ids_of(entries),
                     .accumulate = op.write == Write::accumulate};
    const auto launch_kernel = [&](auto kernel) {
      kernel<<<cuda::grid(cuda::div_up(entries, g.ids)), kThreads, 0, cuda::stream_of(stream)>>>(
          cuda::pointer<T>(op.dy), g);
    };
    wide ? launch_kernel(embedding_backward_kernel<T, 4>) : launch_kernel(embedding_backward_kernel<T, 1>);
  });
  cuda::check_launch("embedding_backward");
}

}  // namespace dstrain
