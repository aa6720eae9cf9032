#pragma once
// ProcessGroup: the collectives over an ordered list of ranks. Implementations: self, thread, mpi (and dry, which only
// counts); on GPUs staged over those, and NCCL. One conformance suite, tests/comm, runs over all of them.
//
// Every member calls the same collectives in the same order with matching shapes and dtypes. A call belongs to one
// poster (compute, loader, checkpoint, ...): groups of different posters never wait for each other, and one group
// object is used by one thread at a time. On a CPU stream a collective has finished when the call returns. Reductions
// add in rank order in float32 (float64 for f64, exact for integers) and round once: the same bits in every
// implementation but NCCL (nccl_group.h). All tensors are contiguous. dtypes: f32, bf16, f64, i32, i64; data movement
// takes any dtype. Errors: Error{ExitCode::lost} when a peer is gone, Error{bug} on mismatched arguments that can be
// seen locally.

#include <span>
#include <string>

#include "lib/core/stream.h"
#include "lib/core/tensor.h"

namespace dstrain {

enum class ReduceOp : unsigned char { sum, max };

struct Send {
  Tensor tensor;
  int to;  // rank in the group
};
struct Receive {
  Tensor tensor;
  int from;
};

class ProcessGroup {
 public:
  virtual ~ProcessGroup() = default;

  virtual const std::string& name() const = 0;
  virtual int rank() const = 0;
  virtual int size() const = 0;
  // Whether calls on a CUDA stream are enqueued like kernels, so that they can be recorded and overlap.
  virtual bool on_device() const { return false; }
  // How tensors of a GPU travel, for people.
  virtual const char* transport() const { return "nothing"; }
  // Memory of its own that the calls so far have needed; on dry streams what they would have.
  virtual std::size_t scratch_bytes() const = 0;

  // In place: every member ends with the reduction.
  virtual void all_reduce(Stream& stream, const Tensor& tensor, ReduceOp op = ReduceOp::sum) = 0;
  // `in` is (size * n), `out` is (n): this rank's slice of the sum. `out` may be that slice of `in`.
  virtual void reduce_scatter(Stream& stream, const Tensor& out, const Tensor& in) = 0;
  // `in` is (n), `out` is (size * n). `in` may be this rank's slice of `out`.
  virtual void all_gather(Stream& stream, const Tensor& out, const Tensor& in) = 0;
  // Counts are elements, one a member; pieces lie one after another. Counts may be zero.
  virtual void all_to_all(Stream& stream, const Tensor& out, const Tensor& in, std::span<const Index> receive_counts,
                          std::span<const Index> send_counts) = 0;
  virtual void broadcast(Stream& stream, const Tensor& tensor, int root) = 0;
  // All sends and receives posted together; returns when all are done. Between one pair messages match in order.
  virtual void exchange(Stream& stream, std::span<const Send> sends, std::span<const Receive> receives) = 0;
  virtual void barrier(Stream& stream) = 0;
};

}  // namespace dstrain
