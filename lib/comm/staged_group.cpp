#include "lib/comm/staged_group.h"

#include <algorithm>

namespace dstrain {

// One call: host twins of its tensors in one block, and a host stream.
class StagedGroup::Call {
 public:
  Call(StagedGroup& group, Stream& device, std::initializer_list<const Tensor*> tensors)
      : device_(device), host_(Device::cpu, Device::cpu, &device.pool(), nullptr, device.ledger()) {
    host_.set_whereabouts(device.whereabouts());
    std::size_t bytes = 0;
    for (const Tensor* t : tensors) bytes += padded(t->bytes());
    at_ = group.memory(bytes);
  }
  Stream& stream() { return host_; }
  // The next twin, in the order of the constructor's list.
  Tensor twin(const Tensor& t) {
    const Tensor host(at_, t.dtype, Device::cpu, t.shape);
    at_ += padded(t.bytes());
    return host;
  }
  void down(const Tensor& to, const Tensor& from) { device_.queue().copy(to.data, from.data, from.bytes()); }
  void up(const Tensor& to, const Tensor& from) { device_.queue().copy(to.data, from.data, from.bytes()); }
  // Waits for the copies down; also for those up of the call before, whose memory this one uses.
  void wait() { device_.queue().synchronize(); }

  static std::size_t padded(std::size_t bytes) { return (bytes + 255) / 256 * 256; }

 private:
  Stream& device_;
  Stream host_;
  std::byte* at_ = nullptr;
};

std::byte* StagedGroup::memory(std::size_t bytes) {
  if (memory_.bytes() < bytes) memory_ = Buffer::pinned("communication staging", bytes);
  return memory_.data();
}

void StagedGroup::all_reduce(Stream& stream, const Tensor& tensor, ReduceOp op) {
  if (stream.device() != Device::cuda) return host_->all_reduce(stream, tensor, op);
  if (size() == 1 || tensor.numel() == 0) return;
  stream.synchronize();  // the block may still be read by the copy up of an earlier call
  Call call(*this, stream, {&tensor});
  const Tensor host = call.twin(tensor);
  call.down(host, tensor);
  call.wait();
  host_->all_reduce(call.stream(), host, op);
  call.up(tensor, host);
}

void StagedGroup::reduce_scatter(Stream& stream, const Tensor& out, const Tensor& in) {
  if (stream.device() != Device::cuda) return host_->reduce_scatter(stream, out, in);
  stream.synchronize();
  Call call(*this, stream, {&out, &in});
  const Tensor host_out = call.twin(out), host_in = call.twin(in);
  call.down(host_in, in);
  call.wait();
  host_->reduce_scatter(call.stream(), host_out, host_in);
  call.up(out, host_out);
}

void StagedGroup::all_gather(Stream& stream, const Tensor& out, const Tensor& in) {
  if (stream.device() != Device::cuda) return host_->all_gather(stream, out, in);
  stream.synchronize();
  Call call(*this, stream, {&out, &in});
  const Tensor host_out = call.twin(out), host_in = call.twin(in);
  call.down(host_in, in);
  call.wait();
  host_->all_gather(call.stream(), host_out, host_in);
  call.up(out, host_out);
}

void StagedGroup::all_to_all(Stream& stream, const Tensor& out, const Tensor& in, std::span<const Index> receive_counts,
                             std::span<const Index> send_counts) {
  if (stream.device() != Device::cuda) return host_->all_to_all(stream, out, in, receive_counts, send_counts);
  stream.synchronize();
  Call call(*this, stream, {&out, &in});
  const Tensor host_out = call.twin(out), host_in = call.twin(in);
  call.down(host_in, in);
  call.down(host_out, out);  // what no piece reaches stays
  call.wait();
  host_->all_to_all(call.stream(), host_out, host_in, receive_counts, send_counts);
  call.up(out, host_out);
}

void StagedGroup::broadcast(Stream& stream, const Tensor& tensor, int root) {
  if (stream.device() != Device::cuda) return host_->broadcast(stream, tensor, root);
  if (size() == 1) return;
  stream.synchronize();
  Call call(*this, stream, {&tensor});
  const Tensor host = call.twin(tensor);
  if (rank() == root) call.down(host, tensor);
  call.wait();
  host_->broadcast(call.stream(), host, root);
  if (rank() != root) call.up(tensor, host);
}

void StagedGroup::exchange(Stream& stream, std::span<const Send> sends, std::span<const Receive> receives) {
  if (stream.device() != Device::cuda) return host_->exchange(stream, sends, receives);
  stream.synchronize();
  std::size_t bytes = 0;
  for (const Send& s : sends) bytes += Call::padded(s.tensor.bytes());
  for (const Receive& r : receives) bytes += Call::padded(r.tensor.bytes());
  memory(bytes);
  Call call(*this, stream, {});
  std::vector<Send> host_sends;
  std::vector<Receive> host_receives;
  for (const Send& s : sends) {
    host_sends.push_back({call.twin(s.tensor), s.to});
    call.down(host_sends.back().tensor, s.tensor);
  }
  for (const Receive& r : receives) host_receives.push_back({call.twin(r.tensor), r.from});
  call.wait();
  host_->exchange(call.stream(), host_sends, host_receives);
  for (std::size_t i = 0; i < receives.size(); ++i) call.up(receives[i].tensor, host_receives[i].tensor);
}

void StagedGroup::barrier(Stream& stream) {
  if (stream.device() != Device::cuda) return host_->barrier(stream);
  stream.synchronize();
  Call call(*this, stream, {});
  host_->barrier(call.stream());
}

}  // namespace dstrain
