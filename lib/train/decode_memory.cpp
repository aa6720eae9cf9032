#include "lib/train/decode_memory.h"

namespace dstrain {

DecodeMemory::DecodeMemory(Engine& engine, Index samples, Index length)
    : shape_{samples, length, engine.stage().model().kv_heads, engine.stage().model().head_dim},
      value_dim_(engine.stage().model().value_dim),
      dtype_(engine.params().compute().dtype),
      device_(engine.stream().device()),
      layers_(engine.stage().model().blocks),
      ranks_(engine.groups().tensor->size()) {
  const StageModel& model = engine.stage().model();
  const Index values = shape_.numel() / shape_[3] * value_dim_;
  cache_ = Buffer("key-value cache", device_,
                  static_cast<std::size_t>(layers_ * (shape_.numel() + values)) * size_of(dtype_));
  if (!model.head) return;
  columns_ = model.head->weight().shape[0];
  logits_ = Buffer("logits", device_, static_cast<std::size_t>(samples * columns_) * sizeof(float));
  if (ranks_ > 1)
    gathered_ =
        Buffer("gathered logits", device_, static_cast<std::size_t>(ranks_ * samples * columns_) * sizeof(float));
}

KvCache DecodeMemory::cache(Index samples) const {
  check(samples <= shape_[0], "{} samples in a cache for {}", samples, shape_[0]);
  Shape shape = shape_, value_shape = shape_;
  shape[0] = value_shape[0] = samples;
  value_shape[3] = value_dim_;
  const std::size_t key_bytes = static_cast<std::size_t>(shape_.numel()) * size_of(dtype_);
  const std::size_t bytes =
      key_bytes + static_cast<std::size_t>(shape_.numel() / shape_[3] * value_dim_) * size_of(dtype_);
  KvCache cache;
  for (Index layer = 0; layer < layers_; ++layer) {
    std::byte* const at = cache_.data() + bytes * static_cast<std::size_t>(layer);
    cache.keys.emplace_back(at, dtype_, device_, shape);
    cache.values.emplace_back(at + key_bytes, dtype_, device_, value_shape);
  }
  return cache;
}

Tensor DecodeMemory::logits(Index samples) const {
  return columns_ == 0 ? Tensor{} : Tensor(logits_.data(), DType::f32, device_, {samples, columns_});
}

Tensor DecodeMemory::gathered(Index samples) const {
  const Buffer& memory = ranks_ > 1 ? gathered_ : logits_;
  return Tensor(memory.data(), DType::f32, device_, {ranks_, samples, columns_});
}

}  // namespace dstrain
