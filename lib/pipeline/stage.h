#pragma once
// Stage: the layers of one rank and the memory that their passes need. With executor.cpp the only code of this folder
// that touches a device.

#include <memory>
#include <vector>

#include "lib/model/build.h"

namespace dstrain {

// What a pass over a micro-batch needs beside the batch.
struct PassOptions {
  Mode mode = Mode::train;
  Write write = Write::overwrite;  // of parameter gradients
  std::uint64_t seed = 0;          // of dropout
  float loss_scale = 1;            // 1 / valid tokens of the whole step
  Tensor loss = {};                // (1) f64 on the last stage: losses are added
  KvCache* cache = nullptr;        // Mode::decode
};

class Stage {
 public:
  // Bytes of each arena; on Device::dry they are found, elsewhere they are limits.
  struct Sizes {
    std::size_t slot = 0;      // activations of one micro-batch
    std::size_t scratch = 0;   // temporaries of one layer
    std::size_t boundary = 0;  // what is sent, and the gradient that flows back
  };

  // `slots`: micro-batches whose activations may be alive at once. `max_rows`: rows of the largest micro-batch. The
  // group is borrowed.
  Stage(StageModel model, Device device, ProcessGroup& tensor, int slots, Index max_rows, const Sizes& sizes);

  const StageModel& model() const { return model_; }
  int slots() const { return static_cast<int>(slots_.size()); }

  // Empties the slot and returns where the previous stage's output (rows, C) is to be put. Not on the first stage.
  Tensor input(int slot, Index rows);
  // Runs the layers. On the last stage the loss is added to options.loss in Mode::eval, and output() is the normalised
  // hidden state; elsewhere output() is what the next stage reads. Valid until the next forward.
  void forward(Stream& stream, int slot, const Batch& batch, const PassOptions& options);
  Tensor output() const { return output_; }
  // Where the gradient of output() (rows, C) is to be put before backward(); afterwards it holds that of the input.
  Tensor gradient(Index rows) const { return gradient_.slice(0, 0, rows); }
  // Runs the layers backwards and empties the slot. On the last stage adds the loss to options.loss.
  void backward(Stream& stream, int slot, const Batch& batch, const PassOptions& options);
  // This tensor rank's columns of the logits of rows of output(): `out` is (rows, local vocabulary). Last stage only.
  void logits(Stream& stream, const Tensor& normalised, const Tensor& out);
  // Forgets the slot's activations: after a forward without backward.
  void release(int slot);

  Sizes used() const;  // high-water marks
  Sizes capacities() const;

 private:
  struct Slot {
    Arena activations;
    Tensor input;
    std::vector<std::unique_ptr<Saved>> saved;  // one a layer
  };
  Context context(Stream& stream, Slot& slot, const PassOptions& options);

  StageModel model_;
  ProcessGroup& tensor_;
  bool first_, last_;
  std::vector<Slot> slots_;
  Arena scratch_, boundary_;
  Tensor send_, gradient_;  // (max_rows, C)
  Tensor output_;
};

}  // namespace dstrain
