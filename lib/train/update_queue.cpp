#include "lib/train/update_queue.h"

#include <algorithm>

namespace dstrain {

UpdateQueue::UpdateQueue(const ParamArena& params, const Optimizer& optimizer, int multiprocessors)
    : params_(params),
      optimizer_(optimizer),
      multiprocessors_(multiprocessors),
      stream_(Device::cuda, Device::cuda, nullptr, nullptr, nullptr, &queue_) {
  layers_.push_back(0);
  for (const ParamArena::Bucket& b : params.buckets()) layers_.push_back(b.ready_layer);
  std::sort(layers_.begin(), layers_.end());
  layers_.erase(std::unique(layers_.begin(), layers_.end()), layers_.end());
  for (std::size_t i = 0; i < layers_.size(); ++i) done_.emplace_back();
}

void UpdateQueue::update(Stream& main, const Tensor& squared_norm, const Tensor& loss, const gpu::Event* event) {
  join(main);
  optimizer_.prepare(main, squared_norm, loss);
  begin_.record(main.queue());
  queue_.wait(begin_);
  if (event != nullptr) queue_.wait(*event);
  for (std::size_t i = 0; i < layers_.size(); ++i) {
    stream_.confine(i == 0 ? 0 : multiprocessors_);
    // The layer whose backward completes a bucket is the first that reads it.
    for (const ParamArena::Bucket& b : params_.buckets())
      if (b.ready_layer == layers_[i]) optimizer_.update(stream_, b.range);
    done_[i].record(queue_);
  }
  running_ = true;
}

void UpdateQueue::wait(Stream& main, std::size_t layer) {
  const auto at = std::lower_bound(layers_.begin(), layers_.end(), layer) - layers_.begin();
  if (!running_) return;
  main.queue().wait(done_[static_cast<std::size_t>(at)]);
  if (layer == layers_.back()) running_ = false;
}

void UpdateQueue::join(Stream& main) { wait(main, layers_.back()); }

}  // namespace dstrain
