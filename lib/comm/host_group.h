#pragma once
// HostGroup: the collectives on host memory, written once over any Transport.
//
// Reductions are an exchange of slices and a sum in rank order, so their bits depend neither on the transport nor on
// timing. Traffic is counted in stream.ledger() under the group's name; on a dry stream it is only counted.
// Scratch memory (reductions: at most (size - 1) * 4 MiB) is allocated once and kept.

#include <string>
#include <vector>

#include "lib/comm/process_group.h"
#include "lib/comm/transport.h"

namespace dstrain {

// Messages are cut at this many bytes: MPI counts are 32-bit.
constexpr std::size_t kMessageCut = 1ull << 30;

class HostGroup final : public ProcessGroup {
 public:
  // REQUIRES: 0 < cut < 2^31.
  HostGroup(std::string name, std::unique_ptr<Transport> transport, std::size_t cut = kMessageCut);

  const std::string& name() const override { return name_; }
  int rank() const override { return rank_; }
  int size() const override { return size_; }
  std::size_t scratch_bytes() const override { return scratch_.bytes(); }
  void all_reduce(Stream& stream, const Tensor& tensor, ReduceOp op) override;
  void reduce_scatter(Stream& stream, const Tensor& out, const Tensor& in) override;
  void all_gather(Stream& stream, const Tensor& out, const Tensor& in) override;
  void all_to_all(Stream& stream, const Tensor& out, const Tensor& in, std::span<const Index> receive_counts,
                  std::span<const Index> send_counts) override;
  void broadcast(Stream& stream, const Tensor& tensor, int root) override;
  void exchange(Stream& stream, std::span<const Send> sends, std::span<const Receive> receives) override;
  void barrier(Stream& stream) override;

 private:
  struct Slice {
    Index begin, end;  // elements
  };
  // Sends sends_, receives into receives_, then clears both. Counts, cuts, skips what is empty.
  void transfer(Stream& stream);
  void send(std::byte* data, std::size_t bytes, int to) { sends_.push_back({data, bytes, to}); }
  void receive(std::byte* data, std::size_t bytes, int from) { receives_.push_back({data, bytes, from}); }
  std::byte* scratch(Stream& stream, std::size_t bytes);
  // out = reduction over members of slice `rank_` of each member's `in`. `slice_of(r)` is what member r reduces.
  template <class SliceOf>
  void reduce_slices(Stream& stream, std::byte* out, std::byte* in, DType dtype, ReduceOp op, SliceOf slice_of);
  // A local copy; nothing on a dry stream or onto itself.
  static void copy(Stream& stream, std::byte* to, const std::byte* from, std::size_t bytes);
  void check_tensor(const Stream& stream, const Tensor& tensor, const char* what) const;

  std::string name_;
  std::unique_ptr<Transport> transport_;
  int rank_;
  int size_;
  std::size_t cut_;
  std::vector<Part> sends_, receives_, send_pieces_, receive_pieces_;
  std::vector<const std::byte*> contributions_;
  Buffer scratch_;
};

}  // namespace dstrain
