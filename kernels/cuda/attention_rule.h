#pragma once
// Who runs attention on CUDA. Pure functions: `plan` counts workspace by them, without a GPU.

#include <algorithm>
#include <initializer_list>

#include "kernels/attention.h"
#include "kernels/check.h"

namespace dstrain::cuda {

// The library and card that decide.
struct CudnnFacts {
  std::size_t version = 0;  // as cudnnGetVersion() gives it: 91400 is 9.14.0
  int major = 0;            // compute capability
};

inline constexpr const char* kUnaligned = "its rows are not aligned to 16 bytes";

// Why cuDNN cannot run the op; null when it can. Known bad: 9.10.0 and 9.10.1 (wrong results), 9.14.0 (sliding windows,
// which we have not), up to 9.15.0 (lengths that are no multiple of 128 fault in CUDA graphs). `deterministic` is about
// the gradient. Addresses are not looked at.
template <class Op>
const char* why_not_cudnn(const Op& op, bool deterministic, const CudnnFacts& facts) {
  const Index size = op.q.dim(3), value_size = op.v.dim(3), queries = op.q.dim(1), keys = op.k.dim(1);
  if (op.q.dtype != DType::bf16) return "its tensors are not bf16";
  if (op.dropout.p > 0) return "it has dropout";
  if (op.first_keys.defined()) return "its queries start at keys of their own";
  if (facts.version < 90600) return "cuDNN is older than 9.6";
  if (facts.version == 91000 || facts.version == 91001) return "cuDNN 9.10.0 and 9.10.1 are known to be wrong";
  if (facts.major < 8) return "the card is older than Ampere";
  if (deterministic && facts.major >= 10) return "on this card cuDNN's gradient is not deterministic";
  const Index most = facts.version >= 91300 && facts.major == 9 ? 256 : 128;
  if (size % 8 != 0 || value_size % 8 != 0 || size > most || value_size > most) return "of the size of its heads";
  if (op.q.dim(0) == 0 || queries == 0 || keys == 0) return "it is empty";
  if (queries % 128 != 0 || keys % 128 != 0) return "its lengths are not multiples of 128";
  if (op.mask == AttentionMask::causal && (queries != keys || op.query_offset != 0))
    return "its causal mask does not start at the first key";
  const auto whole = [](std::initializer_list<const Tensor*> tensors) {
    for (const Tensor* t : tensors) {
      for (int d = 0; d < 3; ++d) {
        if (t->stride(d) % 8 != 0) return false;
      }
    }
    return true;
  };
  bool rows = whole({&op.q, &op.k, &op.v, &op.o});
  if constexpr (requires { op.dq; }) rows = rows && whole({&op.dout, &op.dq, &op.dk, &op.dv});
  return rows ? nullptr : kUnaligned;
}

// The most that cuDNN takes for the op's workspace where it runs: forward.
inline std::size_t cudnn_workspace_bound(const AttentionForward&) { return std::size_t{32} << 20; }

// The gradient is made in parts of samples, or of key heads with their queries' heads, so that the part of the
// workspace that grows with the square of the length stays below this, or is one group of heads'. Parts do not change
// bits.
constexpr std::size_t kCudnnProducts = std::size_t{4} << 30;

struct BackwardParts {
  Index samples, key_heads;  // of one part; the last ones may be smaller
};

// Bytes of the score gradients in bf16 of the query heads that share one key head.
inline std::size_t cudnn_products(const AttentionBackward& op) {
  const auto blocks = [](Index n) { return static_cast<std::size_t>((n + 127) / 128 * 128); };
  return static_cast<std::size_t>(op.q.dim(2) / op.k.dim(2)) * blocks(op.q.dim(1)) * blocks(op.k.dim(1)) * 2;
}

inline BackwardParts cudnn_backward_parts(const AttentionBackward& op) {
  const Index samples = op.q.dim(0), key_heads = op.k.dim(2);
  const auto fit = static_cast<Index>(kCudnnProducts / cudnn_products(op));  // groups of heads
  const auto even = [](Index n, Index most) {
    const Index parts = (n + most - 1) / most;
    return (n + parts - 1) / parts;
  };
  if (fit >= key_heads) return {even(samples, std::min(fit / key_heads, samples)), key_heads};
  return {1, even(key_heads, std::max<Index>(fit, 1))};
}

// Backward, deterministic or not: score gradients in bf16, dq in f32, sums of dout . o, dk and dv of every query head
// where heads share keys, and what the engine wants itself.
inline std::size_t cudnn_workspace_bound(const AttentionBackward& op) {
  const BackwardParts parts = cudnn_backward_parts(op);
  const auto groups = static_cast<std::size_t>(parts.samples * parts.key_heads);
  const std::size_t heads = groups * static_cast<std::size_t>(op.q.dim(2) / op.k.dim(2));
  const auto queries = static_cast<std::size_t>(op.q.dim(1)), keys = static_cast<std::size_t>(op.k.dim(1));
  const auto size = static_cast<std::size_t>(op.q.dim(3)), value_size = static_cast<std::size_t>(op.v.dim(3));
  const std::size_t dq = heads * queries * size * 4, sums = heads * queries * 4;
  const std::size_t shared = op.q.dim(2) == op.k.dim(2) ? 0 : heads * keys * (size + value_size) * 4;
  return groups * cudnn_products(op) + dq + sums + shared + (std::size_t{32} << 20);
}

// Whether cuDNN may run the op somewhere: what workspace() counts for.
template <class Op>
bool may_use_cudnn(const Op& op) {
  return why_not_cudnn(op, false, {.version = 99999, .major = 9}) == nullptr;
}

// Who runs the op, addresses apart.
template <class Op>
bool attention_uses_cudnn(const Op& op, const ComputeSettings& settings, const CudnnFacts& facts) {
  return settings.attention != AttentionChoice::native && why_not_cudnn(op, settings.deterministic, facts) == nullptr;
}

// Our own gradient on Hopper's warpgroup products (kernels/cuda/attention_wgmma.h).
inline constexpr Index kWgmmaKeys = 128;  // of a tile

// Why it cannot run the op; null when it can. Addresses are not looked at.
inline const char* why_not_wgmma(const AttentionBackward& op, bool deterministic, int major) {
  const Index size = op.q.dim(3), length = op.q.dim(1), samples = op.q.dim(0);
  if (major != 9) return "the card is not a Hopper";
  if (deterministic) return "its sums are in no fixed order";
  if (op.q.dtype != DType::bf16) return "its tensors are not bf16";
  if (op.dropout.p > 0) return "it has dropout";
  if (op.first_keys.defined()) return "its queries start at keys of their own";
  if ((size != 64 && size != 128) || op.v.dim(3) != size) return "of the size of its heads";
  if (op.k.dim(1) != length || op.query_offset != 0) return "its queries are not at its keys' positions";
  if (samples == 0 || length == 0 || length % kWgmmaKeys != 0) return "its length is not a multiple of 128";
  if (samples * op.q.dim(2) * length >= Index{1} << 31) return "it is too long";
  for (const Tensor* t : {&op.q, &op.k, &op.v, &op.o, &op.dout, &op.dq, &op.dk, &op.dv}) {
    for (int d = 0; d < 3; ++d) {
      if (t->stride(d) % 8 != 0) return kUnaligned;
    }
    if (samples > 1 && t->stride(0) != length * t->stride(1)) return "its samples do not follow each other";
  }
  return nullptr;
}

// dq in f32, dout . o and the scaled lse of every query, a counter of tiles.
inline std::size_t wgmma_workspace(const AttentionBackward& op) {
  const auto rows = static_cast<std::size_t>(op.q.dim(0) * op.q.dim(1) * op.q.dim(2));
  return arena_bytes({rows * static_cast<std::size_t>(op.q.dim(3)) * 4, rows * 4, rows * 4, 4});
}

}  // namespace dstrain::cuda
