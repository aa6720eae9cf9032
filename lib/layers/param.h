#pragma once
// Param: one tensor for the computation, and the pieces of Hugging Face tensors that it is made of. Init, checkpoint,
// import and export go by piece, so merged (QKV, gate-up) and transposed (GPT-2) weights look alike everywhere else.

#include <functional>
#include <string>
#include <vector>

#include "lib/core/tensor.h"

namespace dstrain {

// The group over which a piece's gradient is summed before the data-parallel reduction.
enum class PreReduce : unsigned char {
  none,
  kv_replica,  // tensor ranks that hold the same key-value head
  embedding,   // first and last pipeline stage: copies of a tied embedding
};

enum class Init : unsigned char { normal, zeros, ones };

// How a parameter is updated.
enum class UpdateRule : unsigned char {
  adamw,
  // A router's balancing bias: float32 whatever weights are computed in, no part of the gradient norm. Its `gradient`
  // holds the experts' tokens of the step (kernels/router.h, BalanceUpdate).
  balance,
  // As that, without a bias: its tensor has no pieces, nothing reads, saves or updates it.
  count,
};

// A rectangular part of a tensor as Hugging Face's files name and shape it (one or two dimensions).
struct Piece {
  std::string name;
  Shape global;             // in the file's axes
  Shape offset, extent;     // this rank's part, in the file's axes; an extent may be 0
  bool transposed = false;  // the file holds (in, out), the computation (out, in)
  Index row = 0;            // first row of the Param's tensor that the piece fills
  PreReduce reduce = PreReduce::none;
  bool owned = true;  // exactly one rank of a model copy owns an element: it counts it in norms and saves it

  // Rows and columns in the computation's orientation; vectors are (n, 1).
  Index rows() const { return extent.rank() == 1 ? extent[0] : transposed ? extent[1] : extent[0]; }
  Index columns() const { return extent.rank() == 1 ? 1 : transposed ? extent[0] : extent[1]; }
};

struct Param {
  Shape shape;  // (out, in) or (n), this rank's, padded rows included; padding is zero and stays zero
  std::vector<Piece> pieces;
  Init init = Init::normal;
  float init_std = 0.02f;
  bool decay = true;  // weight decay: matrices only
  UpdateRule rule = UpdateRule::adamw;
  // A micro-batch gives it its gradient in one product, which is rounded once when gradients are bf16.
  bool one_product = false;
  bool spread = false;  // of experts that lie on other ranks of the expert group: its replicas are expert_replica's
  Index flat = 0;       // its first element in the flat arrays of the ParamArena
  // Views into the arenas, set by ParamArena. `compute` is what layers read; only the optimizer and ParamArena::write
  // write it.
  Tensor master;               // f32; undefined when split
  Tensor compute;              // bf16, or f32: then it is the master itself
  Tensor low;                  // u16, the master's low bits when split
  Tensor gradient;             // f32, or bf16
  Tensor exp_avg, exp_avg_sq;  // f32

  Index numel() const { return shape.numel(); }
  Index row_width() const { return shape.rank() == 1 ? 1 : shape[1]; }
};

using ParamVisitor = std::function<void(Param&)>;

// How a parameter is cut over the tensor group.
struct TensorShard {
  int rank = 0;
  int size = 1;
};

}  // namespace dstrain
