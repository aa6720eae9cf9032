#include "kernels/dropout.h"

#include "kernels/cuda/device/philox.cuh"
#include "kernels/cuda/device/row_map.cuh"

namespace dstrain {

namespace {

struct DropoutArgs {
  const std::int64_t* samples;
  const std::int32_t* positions;
  Philox key;
  float p, scale;
  Index y_stride, x_stride, columns, width, first_column;
};

// Four neighbours, whose numbers may belong to two counters.
constexpr int kAny = 4;
template <class T>
struct DropoutAny {
  T* y;
  const T* x;
  DropoutArgs a;
  __device__ void operator()(Index row, Index c) const {
    const Index first = a.positions[row] * a.width + a.first_column + c;
    const auto sample = static_cast<std::uint64_t>(a.samples[row]);
    Index counter = -1;
    cuda::Bits bits{};
#pragma unroll
    for (int j = 0; j < kAny; ++j) {
      if (c + j >= a.columns) return;
      const Index e = first + j;
      if (e / 4 != counter) {
        counter = e / 4;
        bits = cuda::philox(a.key, sample, static_cast<std::uint64_t>(counter));
      }
      const std::uint32_t mine = e % 4 == 0 ? bits.v[0] : e % 4 == 1 ? bits.v[1] : e % 4 == 2 ? bits.v[2] : bits.v[3];
      const float kept = cuda::to_float(x[row * a.x_stride + c + j]) * a.scale;
      y[row * a.y_stride + c + j] = cuda::from_float<T>(cuda::uniform(mine) >= a.p ? kept : 0.0f);
    }
  }
};

// N neighbours of aligned rows; every fourth element's number is a multiple of four.
template <class T, int N>
struct DropoutWide {
  T* y;
  const T* x;
  DropoutArgs a;
  __device__ void operator()(Index row, Index c) const {
    auto v = cuda::load_vec<N>(x + row * a.x_stride + c);
    const Index first = a.positions[row] * a.width + a.first_column + c;
    const auto sample = static_cast<std::uint64_t>(a.samples[row]);
#pragma unroll
    for (int j = 0; j < N; j += 4) {
      const cuda::Bits bits = cuda::philox(a.key, sample, static_cast<std::uint64_t>((first + j) / 4));
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float kept = cuda::to_float(v.v[j + i]) * a.scale;
        v.v[j + i] = cuda::from_float<T>(cuda::uniform(bits.v[i]) >= a.p ? kept : 0.0f);
      }
    }
    cuda::store_vec<N>(y + row * a.y_stride + c, v);
  }
};

}  // namespace

void run(Cuda, Stream& stream, const Dropout& op) {
  const Index rows = op.x.dim(0), columns = op.x.dim(1);
  const DropoutArgs args{.samples = op.sample_ids.as<std::int64_t>(),
                         .positions = op.positions.as<std::int32_t>(),
                         .key = op.key,
                         .p = op.p,
                         .scale = 1.0f / (1.0f - op.p),
                         .y_stride = cuda::row_stride(op.y),
                         .x_stride = cuda::row_stride(op.x),
                         .columns = columns,
                         .width = op.columns == 0 ? columns : op.columns,
                         .first_column = op.first_column};
  const bool wide =
      cuda::aligned_rows(op.x) && cuda::aligned_rows(op.y) && args.width % 4 == 0 && args.first_column % 4 == 0;
  cuda::dispatch_float(op.x.dtype, [&](auto zero) {
    using T = decltype(zero);
    constexpr int N = 16 / sizeof(T);
    T* const y = cuda::pointer<T>(op.y);
    const T* const x = cuda::pointer<T>(op.x);
    if (wide)
      cuda::row_map<N>(stream, rows, columns, "dropout", DropoutWide<T, N>{y, x, args});
    else
      cuda::row_map<kAny>(stream, rows, columns, "dropout", DropoutAny<T>{y, x, args});
  });
}

}  // namespace dstrain
