#include "kernels/elementwise.h"

#include <cmath>

#include "kernels/cuda/device/row_map.cuh"

namespace dstrain {

namespace {

template <class T, int N>
struct AddMap {
  T* y;
  const T *a, *b;
  __device__ void operator()(Index i) const {
    const auto va = cuda::load_vec<N>(a + i), vb = cuda::load_vec<N>(b + i);
    cuda::Vec<T, N> out;
#pragma unroll
    for (int j = 0; j < N; ++j) out.v[j] = cuda::from_float<T>(cuda::to_float(va.v[j]) + cuda::to_float(vb.v[j]));
    cuda::store_vec<N>(y + i, out);
  }
};

template <class To, class From, int N>
struct CastMap {
  To* y;
  const From* x;
  __device__ void operator()(Index i) const {
    const auto v = cuda::load_vec<N>(x + i);
    cuda::Vec<To, N> out;
#pragma unroll
    for (int j = 0; j < N; ++j) out.v[j] = cuda::from_float<To>(cuda::to_float(v.v[j]));
    cuda::store_vec<N>(y + i, out);
  }
};

template <class T>
struct FillMap {
  T* y;
  T value;
  __device__ void operator()(Index i) const { y[i] = value; }
};

// Runs a map over [0, n) in vectors of N where all memory is aligned, and the rest one by one.
template <int N, class Make>
void map_all(Stream& stream, Index n, bool wide, const char* name, Make make) {
  const Index whole = wide ? n / N * N : 0;
  cuda::flat_map<N>(stream, whole, name, make(std::integral_constant<int, N>{}, 0));
  cuda::flat_map<1>(stream, n - whole, name, make(std::integral_constant<int, 1>{}, whole));
}

constexpr int kMaxRank = 6;

struct Strided {
  Index shape[kMaxRank], to[kMaxRank], from[kMaxRank];
  int rank;
};

template <class T>
struct CopyMap {
  T* y;
  const T* x;
  Strided s;
  __device__ void operator()(Index i) const {
    Index to = 0, from = 0;
    for (int d = s.rank - 1; d >= 0; --d) {
      const Index at = i % s.shape[d];
      i /= s.shape[d];
      to += at * s.to[d];
      from += at * s.from[d];
    }
    y[to] = x[from];
  }
};

}  // namespace

void run(Cuda, Stream& stream, const Add& op) {
  cuda::dispatch_float(op.y.dtype, [&](auto zero) {
    using T = decltype(zero);
    constexpr int N = 16 / sizeof(T);
    const bool wide = cuda::aligned_flat(op.y) && cuda::aligned_flat(op.a) && cuda::aligned_flat(op.b);
    map_all<N>(stream, op.y.numel(), wide, "add", [&](auto n, Index at) {
      return AddMap<T, n>{cuda::pointer<T>(op.y) + at, cuda::pointer<T>(op.a) + at, cuda::pointer<T>(op.b) + at};
    });
  });
}

void run(Cuda, Stream& stream, const Cast& op) {
  cuda::dispatch_float(op.y.dtype, [&](auto to) {
    cuda::dispatch_float(op.x.dtype, [&](auto from) {
      using To = decltype(to);
      using From = decltype(from);
      map_all<4>(stream, op.y.numel(), cuda::aligned_flat(op.y) && cuda::aligned_flat(op.x), "cast",
                 [&](auto n, Index at) {
                   return CastMap<To, From, n>{cuda::pointer<To>(op.y) + at, cuda::pointer<From>(op.x) + at};
                 });
    });
  });
}

void run(Cuda, Stream& stream, const Fill& op) {
  const Index n = op.y.numel();
  if (op.value == 0 && !std::signbit(op.value)) {  // all bits of zero are zero
    stream.queue().fill(op.y.data, 0, op.y.bytes());
    return;
  }
  if (op.y.dtype == DType::f64)
    cuda::flat_map<1>(stream, n, "fill", FillMap<double>{op.y.as<double>(), static_cast<double>(op.value)});
  else if (op.y.dtype == DType::f32)
    cuda::flat_map<1>(stream, n, "fill", FillMap<float>{op.y.as<float>(), op.value});
  else
    cuda::flat_map<1>(stream, n, "fill",
                      FillMap<__nv_bfloat16>{cuda::pointer<__nv_bfloat16>(op.y), __float2bfloat16_rn(op.value)});
}

void run(Cuda, Stream& stream, const Copy& op) {
  const Index n = op.y.numel();
  if (n == 0) return;
  // Few values go by a kernel: it waits for no copy of another queue, which may hold the way to the host for long.
  constexpr std::size_t kFew = 64 << 10;
  if (op.y.contiguous() && op.x.contiguous() && op.y.bytes() > kFew) {
    stream.queue().copy(op.y.data, op.x.data, op.y.bytes());
    return;
  }
  check(op.y.rank() <= kMaxRank, "copy: {}", op.y.to_string());
  Strided s{.rank = op.y.rank()};
  for (int d = 0; d < s.rank; ++d) s.shape[d] = op.y.dim(d), s.to[d] = op.y.stride(d), s.from[d] = op.x.stride(d);
  const auto map = [&](auto zero) {
    using T = decltype(zero);
    cuda::flat_map<1>(stream, n, "copy", CopyMap<T>{cuda::pointer<T>(op.y), cuda::pointer<T>(op.x), s});
  };
  switch (size_of(op.y.dtype)) {
    case 1:
      return map(std::uint8_t{});
    case 2:
      return map(std::uint16_t{});
    case 4:
      return map(std::uint32_t{});
    default:
      return map(std::uint64_t{});
  }
}

}  // namespace dstrain
