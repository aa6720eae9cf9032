#pragma once
// The optimizer's update beside the next forward, on a GPU: a queue of its own updates the parameters of the first
// layers first, and forward waits before each layer for that layer's alone.

#include <optional>
#include <span>
#include <vector>

#include "lib/core/gpu.h"
#include "lib/core/stream.h"
#include "lib/optim/optimizer.h"
#include "lib/optim/param_arena.h"

namespace dstrain {

class UpdateQueue {
 public:
  // `params` and `optimizer` are borrowed. The update takes `multiprocessors` of the GPU for itself, once the first
  // layer's parameters are done: before that nothing else can run.
  UpdateQueue(const ParamArena& params, const Optimizer& optimizer, int multiprocessors);

  // Enqueues an update of everything, after what is on `main` and, unless null, after `event`. The update's numbers are
  // made on `main`.
  void update(Stream& main, const Tensor& squared_norm, const Tensor& loss, const gpu::Event* event);
  // Layers of the stage that wait for a part of the update, ascending; the first is 0.
  std::span<const std::size_t> layers() const { return layers_; }
  // What is on `main` from now on runs after the parts of `layer` and of those before it. `layer` is one of layers().
  void wait(Stream& main, std::size_t layer);
  // After all of it. Nothing to do when there is no update under way.
  void join(Stream& main);
  int multiprocessors() const { return multiprocessors_; }

 private:
  const ParamArena& params_;
  const Optimizer& optimizer_;
  int multiprocessors_;
  gpu::Queue queue_{gpu::Queue::Priority::high};
  Stream stream_;
  std::vector<std::size_t> layers_;
  std::vector<gpu::Event> done_;  // one of layers_ each
  gpu::Event begin_;
  bool running_ = false;
};

}  // namespace dstrain
