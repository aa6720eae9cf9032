#include "kernels/mla.h"

#include <vector>

#include "kernels/cpu/loops.h"
#include "kernels/cpu/vector_math.h"

namespace dstrain {

namespace {

constexpr Index kMostPairs = 128;  // whose sines are kept at a time

// Sines and cosines of a row's pairs [begin, begin + n), times the factor.
struct Angles {
  float sine[kMostPairs], cosine[kMostPairs];
  Angles(float position, const float* frequencies, Index n, float factor) {
    for (Index i = 0; i < n; ++i) {
      cpu::fast_sincos(position * frequencies[i], sine[i], cosine[i]);
      sine[i] *= factor;
      cosine[i] *= factor;
    }
  }
};

}  // namespace

void run(Cpu, Stream& stream, const MlaHeads& op) {
  const Index rows = op.q.dim(0), heads = op.q.dim(1), rotated = op.shared.dim(1), nope = op.q.dim(2) - rotated;
  const float* const frequencies = op.inverse_frequencies.as<float>();
  cpu::dispatch_float(op.q.dtype, [&](auto zero) {
    using T = decltype(zero);
    cpu::parallel_rows(stream, rows, 2 * heads * op.q.dim(2), [&](Index r) {
      T* const q = cpu::row<T>(op.q, r);
      T* const k = cpu::row<T>(op.k, r);
      const T* const kv = cpu::row<T>(op.kv, r);
      const T* const shared = cpu::row<T>(op.shared, r);
      for (Index h = 0; h < heads; ++h) std::copy_n(kv + h * op.kv.stride(1), nope, k + h * op.k.stride(1));
      for (Index begin = 0; begin < rotated / 2; begin += kMostPairs) {
        const Index n = std::min(kMostPairs, rotated / 2 - begin);
        const Angles a(static_cast<float>(op.positions.as<std::int32_t>()[r]), frequencies + begin, n,
                       op.attention_factor);
        T key[2 * kMostPairs];
        for (Index i = 0; i < n; ++i) {
          const float x = cpu::to_float(shared[2 * (begin + i)]), y = cpu::to_float(shared[2 * (begin + i) + 1]);
          key[2 * i] = static_cast<T>(x * a.cosine[i] - y * a.sine[i]);
          key[2 * i + 1] = static_cast<T>(y * a.cosine[i] + x * a.sine[i]);
        }
        for (Index h = 0; h < heads; ++h) {
          std::copy_n(key, 2 * n, k + h * op.k.stride(1) + nope + 2 * begin);
          T* const pair = q + h * op.q.stride(1) + nope + 2 * begin;
          for (Index i = 0; i < n; ++i) {
            const float x = cpu::to_float(pair[2 * i]), y = cpu::to_float(pair[2 * i + 1]);
            pair[2 * i] = static_cast<T>(x * a.cosine[i] - y * a.sine[i]);
            pair[2 * i + 1] = static_cast<T>(y * a.cosine[i] + x * a.sine[i]);
          }
        }
      }
    });
  });
}

void run(Cpu, Stream& stream, const MlaHeadsGradient& op) {
  const Index rows = op.dq.dim(0), heads = op.dq.dim(1), rotated = op.dshared.dim(1), nope = op.dq.dim(2) - rotated;
  const float* const frequencies = op.inverse_frequencies.as<float>();
  cpu::dispatch_float(op.dq.dtype, [&](auto zero) {
    using T = decltype(zero);
    cpu::parallel_rows(stream, rows, 2 * heads * op.dq.dim(2), [&](Index r) {
      T* const dq = cpu::row<T>(op.dq, r);
      T* const dkv = cpu::row<T>(op.dkv, r);
      const T* const dk = cpu::row<T>(op.dk, r);
      T* const dshared = cpu::row<T>(op.dshared, r);
      for (Index h = 0; h < heads; ++h) std::copy_n(dk + h * op.dk.stride(1), nope, dkv + h * op.dkv.stride(1));
      for (Index begin = 0; begin < rotated / 2; begin += kMostPairs) {
        const Index n = std::min(kMostPairs, rotated / 2 - begin);
        const Angles a(static_cast<float>(op.positions.as<std::int32_t>()[r]), frequencies + begin, n,
                       op.attention_factor);
        float sum[2 * kMostPairs] = {};
        for (Index h = 0; h < heads; ++h) {
          const T* const key = dk + h * op.dk.stride(1) + nope + 2 * begin;
          T* const pair = dq + h * op.dq.stride(1) + nope + 2 * begin;
          for (Index i = 0; i < n; ++i) {
            sum[2 * i] += cpu::to_float(key[2 * i]);
            sum[2 * i + 1] += cpu::to_float(key[2 * i + 1]);
            const float x = cpu::to_float(pair[2 * i]), y = cpu::to_float(pair[2 * i + 1]);
            pair[2 * i] = static_cast<T>(x * a.cosine[i] + y * a.sine[i]);
            pair[2 * i + 1] = static_cast<T>(y * a.cosine[i] - x * a.sine[i]);
          }
        }
        for (Index i = 0; i < n; ++i) {
          const float x = sum[2 * i], y = sum[2 * i + 1];
          dshared[2 * (begin + i)] = static_cast<T>(x * a.cosine[i] + y * a.sine[i]);
          dshared[2 * (begin + i) + 1] = static_cast<T>(y * a.cosine[i] - x * a.sine[i]);
        }
      }
    });
  });
}

}  // namespace dstrain
