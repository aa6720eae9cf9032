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

// Where the elements of pair i lie.
template <bool kNeighbours>
struct Pairs {
  Index count;
  Index first(Index i) const { return kNeighbours ? 2 * i : i; }
  Index second(Index i) const { return kNeighbours ? 2 * i + 1 : i + count; }
};

// `body` with the Pairs of `count`.
template <class F>
void with_pairs(bool neighbours, Index count, F&& body) {
  neighbours ? body(Pairs<true>{count}) : body(Pairs<false>{count});
}

template <class T, class P>
void forward(Stream& stream, const MlaHeads& op, const P& pairs) {
  const Index rows = op.q.dim(0), heads = op.q.dim(1), nope = op.q.dim(2) - op.shared.dim(1);
  const float* const frequencies = op.inverse_frequencies.as<float>();
  cpu::parallel_rows(stream, rows, 2 * heads * op.q.dim(2), [&](Index r) {
    T* const q = cpu::row<T>(op.q, r);
    T* const k = cpu::row<T>(op.k, r);
    const T* const kv = cpu::row<T>(op.kv, r);
    const T* const shared = cpu::row<T>(op.shared, r);
    for (Index h = 0; h < heads; ++h) std::copy_n(kv + h * op.kv.stride(1), nope, k + h * op.k.stride(1));
    for (Index begin = 0; begin < pairs.count; begin += kMostPairs) {
      const Index n = std::min(kMostPairs, pairs.count - begin);
      const Angles a(static_cast<float>(op.positions.as<std::int32_t>()[r]), frequencies + begin, n,
                     op.attention_factor);
      T first[kMostPairs], second[kMostPairs];  // of the key
      for (Index i = 0; i < n; ++i) {
        const float x = cpu::to_float(shared[pairs.first(begin + i)]);
        const float y = cpu::to_float(shared[pairs.second(begin + i)]);
        first[i] = static_cast<T>(x * a.cosine[i] - y * a.sine[i]);
        second[i] = static_cast<T>(y * a.cosine[i] + x * a.sine[i]);
      }
      for (Index h = 0; h < heads; ++h) {
        T* const key = k + h * op.k.stride(1) + nope;
        T* const query = q + h * op.q.stride(1) + nope;
        for (Index i = 0; i < n; ++i) {
          const Index at = pairs.first(begin + i), other = pairs.second(begin + i);
          key[at] = first[i];
          key[other] = second[i];
          const float x = cpu::to_float(query[at]), y = cpu::to_float(query[other]);
          query[at] = static_cast<T>(x * a.cosine[i] - y * a.sine[i]);
          query[other] = static_cast<T>(y * a.cosine[i] + x * a.sine[i]);
        }
      }
    }
  });
}

template <class T, class P>
void backward(Stream& stream, const MlaHeadsGradient& op, const P& pairs) {
  const Index rows = op.dq.dim(0), heads = op.dq.dim(1), nope = op.dq.dim(2) - op.dshared.dim(1);
  const float* const frequencies = op.inverse_frequencies.as<float>();
  cpu::parallel_rows(stream, rows, 2 * heads * op.dq.dim(2), [&](Index r) {
    T* const dq = cpu::row<T>(op.dq, r);
    T* const dkv = cpu::row<T>(op.dkv, r);
    const T* const dk = cpu::row<T>(op.dk, r);
    T* const dshared = cpu::row<T>(op.dshared, r);
    for (Index h = 0; h < heads; ++h) std::copy_n(dk + h * op.dk.stride(1), nope, dkv + h * op.dkv.stride(1));
    for (Index begin = 0; begin < pairs.count; begin += kMostPairs) {
      const Index n = std::min(kMostPairs, pairs.count - begin);
      const Angles a(static_cast<float>(op.positions.as<std::int32_t>()[r]), frequencies + begin, n,
                     op.attention_factor);
      float first[kMostPairs] = {}, second[kMostPairs] = {};  // of the key, summed over the heads
      for (Index h = 0; h < heads; ++h) {
        const T* const key = dk + h * op.dk.stride(1) + nope;
        T* const query = dq + h * op.dq.stride(1) + nope;
        for (Index i = 0; i < n; ++i) {
          const Index at = pairs.first(begin + i), other = pairs.second(begin + i);
          first[i] += cpu::to_float(key[at]);
          second[i] += cpu::to_float(key[other]);
          const float x = cpu::to_float(query[at]), y = cpu::to_float(query[other]);
          query[at] = static_cast<T>(x * a.cosine[i] + y * a.sine[i]);
          query[other] = static_cast<T>(y * a.cosine[i] - x * a.sine[i]);
        }
      }
      for (Index i = 0; i < n; ++i) {
        dshared[pairs.first(begin + i)] = static_cast<T>(first[i] * a.cosine[i] + second[i] * a.sine[i]);
        dshared[pairs.second(begin + i)] = static_cast<T>(second[i] * a.cosine[i] - first[i] * a.sine[i]);
      }
    }
  });
}

}  // namespace

void run(Cpu, Stream& stream, const MlaHeads& op) {
  cpu::dispatch_float(op.q.dtype, [&](auto zero) {
    with_pairs(op.neighbours, op.shared.dim(1) / 2, [&](auto pairs) { forward<decltype(zero)>(stream, op, pairs); });
  });
}

void run(Cpu, Stream& stream, const MlaHeadsGradient& op) {
  cpu::dispatch_float(op.dq.dtype, [&](auto zero) {
    with_pairs(op.neighbours, op.dshared.dim(1) / 2, [&](auto pairs) { backward<decltype(zero)>(stream, op, pairs); });
  });
}

}  // namespace dstrain
