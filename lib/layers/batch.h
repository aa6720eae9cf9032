#pragma once
// One micro-batch on this rank. Positions and sample ids travel with the tokens: no layer infers them from row numbers.

#include "lib/core/tensor.h"

namespace dstrain {

struct Batch {
  Index batch = 0;        // B, samples
  Index length = 0;       // T, positions a sample
  Tensor tokens;          // (B * T) i32
  Tensor targets;         // (B * T) i32, the token to predict
  Tensor positions;       // (B * T) i32, 0 .. T-1 within the sample, or its document
  Tensor sample_ids;      // (B) i64, global sample index
  Tensor row_sample_ids;  // (B * T) i64, the same, one a row
  Tensor loss_weights;    // (B * T) f32; 0 where there is nothing to predict
  // Multi-token prediction (lib/layers/mtp_targets.h); undefined without it.
  Tensor mtp_targets = {};  // (depths, B * T) i32: in row k the token k + 2 positions on
  Tensor mtp_weights = {};  // (depths, B * T) f32
  Tensor first_keys = {};  // (B * T) i32, the first position of its sample (or of the key-value cache) that a row sees,
                           // not falling within a sample: documents' borders, left padding. Undefined: every one

  Index rows() const { return batch * length; }
};

}  // namespace dstrain
