#pragma once
// A micro-batch that owns its host memory, for callers without a loader.

#include <vector>

#include "lib/layers/mtp_targets.h"

namespace dstrain {

struct HostBatch {
  Index batch, length;
  std::vector<std::int32_t> tokens, targets, positions;
  std::vector<std::int64_t> sample_ids, row_sample_ids;
  std::vector<float> loss_weights;
  std::vector<std::int32_t> mtp_targets;
  std::vector<float> mtp_weights;
  std::vector<std::int32_t> first_keys;  // empty: every position sees all before it

  // Samples 0 .. b-1 of t positions each; tokens and targets are 0, and nothing is to be predicted.
  HostBatch(Index b, Index t) : batch(b), length(t) {
    const auto rows = static_cast<std::size_t>(b * t);
    tokens.resize(rows);
    targets.resize(rows);
    loss_weights.resize(rows);
    for (Index i = 0; i < b * t; ++i) {
      positions.push_back(static_cast<std::int32_t>(i % t));
      row_sample_ids.push_back(i / t);
    }
    for (Index s = 0; s < b; ++s) sample_ids.push_back(s);
  }

  // With targets of multi-token prediction, made anew by each view().
  void predict_further(Index depths) {
    mtp_targets.resize(static_cast<std::size_t>(depths) * tokens.size());
    mtp_weights.resize(mtp_targets.size());
  }

  // Views of this memory.
  Batch view() {
    const auto tensor = [](auto& v, DType t) {
      return Tensor(v.data(), t, Device::cpu, {static_cast<Index>(v.size())});
    };
    const auto further = [&](auto& v, DType t) {
      if (v.empty()) return Tensor();
      const auto rows = static_cast<Index>(tokens.size());
      return Tensor(v.data(), t, Device::cpu, {static_cast<Index>(v.size()) / rows, rows});
    };
    const Batch made{.batch = batch,
                     .length = length,
                     .tokens = tensor(tokens, DType::i32),
                     .targets = tensor(targets, DType::i32),
                     .positions = tensor(positions, DType::i32),
                     .sample_ids = tensor(sample_ids, DType::i64),
                     .row_sample_ids = tensor(row_sample_ids, DType::i64),
                     .loss_weights = tensor(loss_weights, DType::f32),
                     .mtp_targets = further(mtp_targets, DType::i32),
                     .mtp_weights = further(mtp_weights, DType::f32),
                     .first_keys = first_keys.empty() ? Tensor() : tensor(first_keys, DType::i32)};
    fill_mtp(made);
    return made;
  }
};

}  // namespace dstrain
