#pragma once
// StagedGroup: the collectives of a HostGroup on tensors in GPU memory, through page-locked host memory. For ranks that
// share a GPU. A call on a CUDA stream waits for what the stream holds, and its results are enqueued on return; the
// bits are those of the host's. On other streams it is the host's group itself.

#include <memory>
#include <vector>

#include "lib/comm/process_group.h"

namespace dstrain {

class StagedGroup final : public ProcessGroup {
 public:
  explicit StagedGroup(std::unique_ptr<ProcessGroup> host) : host_(std::move(host)) {}

  const std::string& name() const override { return host_->name(); }
  int rank() const override { return host_->rank(); }
  int size() const override { return host_->size(); }
  const char* transport() const override { return "host memory"; }
  std::size_t scratch_bytes() const override { return host_->scratch_bytes() + memory_.bytes(); }
  void all_reduce(Stream& stream, const Tensor& tensor, ReduceOp op) override;
  void reduce_scatter(Stream& stream, const Tensor& out, const Tensor& in) override;
  void all_gather(Stream& stream, const Tensor& out, const Tensor& in) override;
  void all_to_all(Stream& stream, const Tensor& out, const Tensor& in, std::span<const Index> receive_counts,
                  std::span<const Index> send_counts) override;
  void broadcast(Stream& stream, const Tensor& tensor, int root) override;
  void exchange(Stream& stream, std::span<const Send> sends, std::span<const Receive> receives) override;
  void barrier(Stream& stream) override;

 private:
  class Call;
  std::byte* memory(std::size_t bytes);

  std::unique_ptr<ProcessGroup> host_;
  Buffer memory_;
};

}  // namespace dstrain
