#pragma once
// Stage: the layers of one rank and the memory that their passes need. With executor.cpp the only code of this folder
// that touches a device.

#include <functional>
#include <map>
#include <memory>
#include <tuple>
#include <vector>

#include "lib/core/gpu.h"

#include "lib/model/build.h"

namespace dstrain {

// What a pass over a micro-batch needs beside the batch.
struct PassOptions {
  Mode mode = Mode::train;
  Write write = Write::overwrite;  // of parameter gradients
  std::uint64_t seed = 0;          // of dropout
  Tensor loss_scale = {};          // (1) f32: 1 / valid tokens of the whole step; Mode::train
  Tensor loss = {};                // (1) f64 on the last stage: losses are added; Mode::eval: or (B), one a sample
  Tensor sample_losses = {};       // Mode::eval: (samples of all micro-batches) f64, instead of `loss`
  Tensor mtp_loss_scales = {};     // as Context has them; Mode::train on the last stage
  Tensor mtp_losses = {};
  float mtp_share = 0;
  float sample_share = 0;    // 1 / samples of the whole step; Mode::train
  KvCache* cache = nullptr;  // Mode::decode
  // Called after each forward while output() holds: what reads it goes here.
  std::function<void()> forward_done = {};
  // Called after each backward.
  std::function<void()> backward_done = {};
  // CUDA: record what a pass launches the second time that it is met, and start it as a graph from then on.
  bool graphs = false;
  // Called after each layer's backward with its index in StageModel::layers: its gradients are then complete, if this
  // is the last micro-batch's. What it enqueues is part of the pass. Never changes between passes of graphs.
  std::function<void(std::size_t)> layer_done = {};
  int reserved_multiprocessors = 0;  // left to what layer_done enqueues on other queues
};

class Stage {
 public:
  // Bytes of each arena; on Device::dry they are found, elsewhere they are limits.
  struct Sizes {
    std::size_t slot = 0;       // activations of one micro-batch
    std::size_t scratch = 0;    // temporaries of one layer
    std::size_t boundary = 0;   // what is sent, and the gradient that flows back
    std::size_t batch = 0;      // CUDA: the device's copy of one micro-batch's tokens and the like
    std::size_t constants = 0;  // what layers hold beside parameters
  };

  // `slots`: micro-batches whose activations may be alive at once. `max_rows`: rows of the largest micro-batch. The
  // group is borrowed. Hidden states have the dtype `activations`. `target`, cpu or cuda: whose memory a dry stage
  // counts. `training`: else there is no backward, and no memory for its gradient. `experts`, borrowed: the way to
  // those on other ranks; null: there are none.
  Stage(StageModel model, Device device, Device target, ProcessGroup& tensor, int slots, Index max_rows,
        DType activations, const Sizes& sizes, bool training = true, ExpertExchange* experts = nullptr);

  const StageModel& model() const { return model_; }
  int slots() const { return static_cast<int>(slots_.size()); }

  // Empties the slot and returns where the previous stage's output (rows, C) is to be put. Not on the first stage.
  Tensor input(int slot, Index rows);
  // Runs the layers. The batch is in host memory, page-locked for CUDA, and stays as it is until the slot's backward is
  // done. On the last stage the loss is added to options.loss in Mode::eval, and output() is the normalised
  // hidden state except in Mode::train; elsewhere output() is what the next stage reads. Valid until the next forward.
  void forward(Stream& stream, int slot, const Batch& batch, const PassOptions& options);
  Tensor output() const { return output_; }
  // Where the gradient of output() (rows, C) is to be put before backward(); afterwards it holds that of the input.
  Tensor gradient(Index rows) const { return gradient_.slice(0, 0, rows); }
  // Runs the layers backwards and empties the slot. On the last stage adds the loss to options.loss.
  void backward(Stream& stream, int slot, const PassOptions& options);
  // This tensor rank's columns of the logits of rows of output(): `out` is (rows, local vocabulary), f32. Last stage
  // only.
  void logits(Stream& stream, const Tensor& normalised, const Tensor& out);
  // Forgets the slot's activations: after a forward without backward.
  void release(int slot);

  Sizes used() const;  // high-water marks
  Sizes capacities() const;

 private:
  using LayersSaved = std::vector<std::unique_ptr<Saved>>;  // one a layer
  struct Slot {
    Arena activations;
    Arena batch_memory;
    Batch batch;  // on the stage's device
    Tensor input;
    LayersSaved own;               // of a forward that was run
    LayersSaved* saved = nullptr;  // own, or those of a recorded forward
  };
  // A pass that was recorded, and what its running left behind.
  struct Recorded {
    int met = 0;
    gpu::Graph graph;
    LayersSaved saved;
    std::size_t mark = 0;  // of the slot's activations
    Tensor output;
  };
  // backward, slot, rows, accumulate, with layer_done, mtp_share: numbers that ops are launched with are recorded
  using Key = std::tuple<bool, int, Index, bool, bool, float>;

  Context context(Stream& stream, Slot& slot, const PassOptions& options);
  const Batch& place(Stream& stream, Slot& slot, const Batch& batch);
  void run_forward(Stream& stream, Slot& slot, const PassOptions& options);
  void run_backward(Stream& stream, Slot& slot, const PassOptions& options);
  // Runs `body`, or records it, or starts what was recorded; returns true when it was the last.
  bool replay(Stream& stream, const Key& key, const PassOptions& options, const std::function<void()>& body);

  StageModel model_;
  Device device_, target_;
  ProcessGroup& tensor_;
  ExpertExchange* experts_;
  bool first_, last_;
  DType activations_;
  Arena scratch_, boundary_, constants_;
  std::vector<Slot> slots_;
  Tensor send_, gradient_;  // (max_rows, C)
  Tensor output_;
  std::map<Key, Recorded> recorded_;
};

}  // namespace dstrain
