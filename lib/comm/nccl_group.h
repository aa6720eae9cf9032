#pragma once
// NcclGroup: the collectives of ranks that have a GPU each, by NCCL, enqueued on the stream. Reductions add in NCCL's
// order, the same run after run on the same cards, not rank by rank; bf16 is rounded at each hop. On streams of other
// devices it hands over to the host's group. Errors, those of other ranks that NCCL has noticed included: Error{lost}
// naming the call.

#include <memory>
#include <span>
#include <string>

#include "lib/comm/process_group.h"

namespace dstrain {

// Owns a communicator of an ordered list of ranks; groups of the same members share it, when they are used in the same
// order by one thread.
class NcclCommunicator {
 public:
  virtual ~NcclCommunicator() = default;
  // From any thread: what is in flight ends, with any values; every later call throws Error{lost} with this message.
  virtual void interrupt(const std::string& why) = 0;
};

// Collective over the members: `host` carries the id. The calling thread's GPU is this rank's. `nvls`: NVLink
// multicast.
// `most_blocks`: of NCCL's kernels, each on a multiprocessor of its own; 0: as NCCL likes.
std::shared_ptr<NcclCommunicator> make_nccl_communicator(ProcessGroup& host, bool nvls, int most_blocks);
// `neighbours`: members that this one will exchange with; all of them name each other. They are connected here: later
// the first exchange would make the caller wait for theirs, in whatever order they come to it.
std::unique_ptr<ProcessGroup> make_nccl_group(std::shared_ptr<NcclCommunicator> communicator,
                                              std::unique_ptr<ProcessGroup> host, std::span<const int> neighbours);

}  // namespace dstrain
