#pragma once
// What decoding needs beside an engine: keys and values of the positions seen, and the last logits.

#include "lib/train/engine.h"

namespace dstrain {

class DecodeMemory {
 public:
  // For `samples` samples of `length` positions on the engine's device; counts only when that is dry.
  DecodeMemory(Engine& engine, Index samples, Index length);

  // An empty cache of the first `samples` samples, for this stage's layers. Views of this memory.
  KvCache cache(Index samples) const;
  // (samples, vocabulary of a tensor rank) f32; undefined but on the last stage.
  Tensor logits(Index samples) const;
  // (tensor ranks, samples, vocabulary of one): the logits themselves when there is one.
  Tensor gathered(Index samples) const;
  std::size_t bytes() const { return cache_.bytes() + logits_.bytes() + gathered_.bytes(); }

 private:
  Shape shape_;  // of a layer's keys: (B, length, Hkv, D)
  Index value_dim_;
  DType dtype_;
  Device device_;
  Index layers_, columns_ = 0;
  Index ranks_;  // of the tensor group
  Buffer cache_, logits_, gathered_;
};

}  // namespace dstrain
