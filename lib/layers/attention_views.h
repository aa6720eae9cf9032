#pragma once
// What the attention layers share: views of rows as samples, and the key-value cache.

#include "kernels/elementwise.h"
#include "lib/layers/layer.h"

namespace dstrain {

// (rows, H, D) -> (B, T, H, D)
inline Tensor by_sample(const Tensor& t, Index batch) {
  Tensor out = t;
  const Index length = t.dim(0) / batch;
  out.shape = {batch, length, t.dim(1), t.dim(2)};
  out.strides = {length * t.stride(0), t.stride(0), t.stride(1), t.stride(2)};
  return out;
}

// (B, T) of a batch's first keys; undefined where it has none.
inline Tensor first_keys(const Batch& batch) {
  if (!batch.first_keys.defined()) return {};
  return batch.first_keys.view({batch.batch, batch.length});
}

// In Mode::decode appends k and v (B, T, Hkv, D) to the cache of a block and makes them views of all that it holds.
// Returns the position of the batch's first query.
inline Index extend_cache(Context& context, const Batch& batch, Index slot, Tensor& k, Tensor& v) {
  if (context.mode != Mode::decode) return 0;
  const Index offset = context.cache->length, end = offset + batch.length;
  const Tensor& keys = context.cache->keys[static_cast<std::size_t>(slot)];
  const Tensor& values = context.cache->values[static_cast<std::size_t>(slot)];
  launch(context.stream, Copy{.y = keys.slice(1, offset, end), .x = k});
  launch(context.stream, Copy{.y = values.slice(1, offset, end), .x = v});
  k = keys.slice(1, 0, end);
  v = values.slice(1, 0, end);
  return offset;
}

}  // namespace dstrain
