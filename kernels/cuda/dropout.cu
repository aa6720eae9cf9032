#include "kernels/dropout.h"

#include "kernels/cuda/device/philox.cuh"
#include "kernels/cuda/device/row_map.cuh"

namespace dstrain {

namespace {

// Four neighbours share a counter when their first element's number is a multiple of four; else they take two.
constexpr int kElements = 4;

template <class T>
struct DropoutMap {
  T* y;
  const T* x;
  const std::int64_t* samples;
  const std::int32_t* positions;
  Philox key;
  float p, scale;
  Index y_stride, x_stride, columns, width, first_column;
  __device__ void operator()(Index row, Index c) const {
    const Index first = positions[row] * width + first_column + c;
    const auto sample = static_cast<std::uint64_t>(samples[row]);
    Index counter = -1;
    cuda::Bits bits{};
#pragma unroll
    for (int j = 0; j < kElements; ++j) {
      if (c + j >= columns) return;
      const Index e = first + j;
      if (e / 4 != counter) {
        counter = e / 4;
        bits = cuda::philox(key, sample, static_cast<std::uint64_t>(counter));
      }
      const std::uint32_t mine = e % 4 == 0 ? bits.v[0] : e % 4 == 1 ? bits.v[1] : e % 4 == 2 ? bits.v[2] : bits.v[3];
      const float kept = cuda::to_float(x[row * x_stride + c + j]) * scale;
      y[row * y_stride + c + j] = cuda::from_float<T>(cuda::uniform(mine) >= p ? kept : 0.0f);
    }
  }
};

}  // namespace

void run(Cuda, Stream& stream, const Dropout& op) {
  const Index columns = op.x.dim(1);
  cuda::dispatch_float(op.x.dtype, [&](auto zero) {
    using T = decltype(zero);
    cuda::row_map<kElements>(stream, op.x.dim(0), columns, "dropout",
                             DropoutMap<T>{.y = cuda::pointer<T>(op.y),
                                           .x = cuda::pointer<T>(op.x),
                                           .samples = op.sample_ids.as<std::int64_t>(),
                                           .positions = op.positions.as<std::int32_t>(),
                                           .key = op.key,
                                           .p = op.p,
                                           .scale = 1.0f / (1.0f - op.p),
                                           .y_stride = cuda::row_stride(op.y),
                                           .x_stride = cuda::row_stride(op.x),
                                           .columns = columns,
                                           .width = op.columns == 0 ? columns : op.columns,
                                           .first_column = op.first_column});
  });
}

}  // namespace dstrain
