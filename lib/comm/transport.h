#pragma once
// Transport: how bytes travel inside a group. HostGroup writes every collective over this one call.

#include <cstddef>
#include <memory>
#include <span>

namespace dstrain {

struct Part {
  std::byte* data;  // read when sent, written when received
  std::size_t bytes;
  int peer;  // rank in the group, never this rank
};

class Transport {
 public:
  virtual ~Transport() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;
  // Posts all sends and receives together and returns when all are done. Between one pair, messages match in order and
  // have equal sizes; none is empty. One caller at a time. Throws Error{lost} when a peer is gone.
  virtual void exchange(std::span<const Part> sends, std::span<const Part> receives) = 0;
};

// A group of one, or any rank of a dry world: exchange() must never be called.
std::unique_ptr<Transport> make_silent_transport(int rank, int size);

}  // namespace dstrain
