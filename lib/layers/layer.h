#pragma once
// Layer: owns parameters, never activations. forward returns what backward needs; the caller keeps it.

#include <memory>
#include <vector>

#include "kernels/op.h"
#include "lib/comm/process_group.h"
#include "lib/core/arena.h"
#include "lib/core/rng.h"
#include "lib/core/stream.h"
#include "lib/layers/batch.h"
#include "lib/layers/param.h"

namespace dstrain {

enum class Mode : unsigned char {
  train,   // dropout on, activations kept
  eval,    // dropout off, nothing kept
  decode,  // as eval, attention reads and extends the key-value cache
};

// Keys and values of the positions seen so far, for one stage. Owned by the generator.
struct KvCache {
  std::vector<Tensor> keys, values;  // one a block: (B, capacity, Hkv, D)
  Index length = 0;                  // positions filled; advanced by the caller after a whole forward
};

class ExpertExchange;

// What a layer needs to run, handed down by the stage.
struct Context {
  Stream& stream;
  ProcessGroup& tensor;  // the tensor-parallel group
  Arena& saved;          // lives until this micro-batch's backward is done
  Arena& scratch;        // lives until the layer returns
  Tensor branch;         // (rows, C): the one buffer that each sub-layer's output passes through
  Mode mode = Mode::train;
  Write write = Write::overwrite;  // gradients: the first micro-batch of a step overwrites
  std::uint64_t seed = 0;          // of dropout
  Tensor loss_scale;               // (1) f32: 1 / valid tokens of the whole step; Mode::train
  Tensor loss;                     // (1) f64, loss heads add to it; Mode::eval: or (B), one a sample
  KvCache* cache = nullptr;
  ExpertExchange* experts = nullptr;  // null: every expert is on this rank
  // Multi-token prediction, one a depth; Mode::train.
  Tensor mtp_loss_scales;  // (depths) f32: weight / depths / valid tokens of the whole step
  Tensor mtp_losses;       // (depths) f64, their loss heads add to them
  float mtp_share = 0;     // weight / depths: what their layers' balance losses are multiplied by
  float sample_share = 0;  // 1 / samples of the whole step: what sequence-wise losses are averaged by; Mode::train
};

// Between blocks the value is residual + branch; the sum is taken by the next norm, in one pass.
struct Hidden {
  Tensor residual;     // (rows, C)
  Tensor branch = {};  // (rows, C) or undefined
};

// Base of what a layer's forward keeps for its backward: views into Context::saved.
struct Saved {
  virtual ~Saved() = default;
};

class Layer {
 public:
  virtual ~Layer() = default;
  // Reads x (and may write into x.branch), returns the layer's output; fills `saved` in Mode::train only.
  virtual Hidden forward(Context& context, const Batch& batch, const Hidden& x, std::unique_ptr<Saved>& saved) = 0;
  // `dy` is the gradient of residual + branch of the output; returns that of the input, in place where possible.
  // Writes or adds every parameter gradient, as context.write says.
  virtual Tensor backward(Context& context, const Batch& batch, const Tensor& dy, Saved& saved) = 0;
  // Once, before the first pass: puts what the layer needs beside its parameters into the stage's memory.
  virtual void prepare(Arena&) {}
  // The one walk over the layer's parameters: in the same order on every call.
  virtual void visit(const ParamVisitor& visitor) = 0;
};

}  // namespace dstrain
