#pragma once
// Ranks as threads of one process: mailboxes in shared memory.

#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <tuple>
#include <vector>

#include "lib/comm/transport.h"

namespace dstrain {

// What the rank threads share. All methods are thread-safe.
class ThreadHub : public std::enable_shared_from_this<ThreadHub> {
 public:
  explicit ThreadHub(int ranks);
  int ranks() const { return static_cast<int>(ended_.size()); }

  // The transport of world rank `rank` in a group. Calls by the members with one `traffic` number and member list meet,
  // the n-th call of each with the n-th of the others.
  std::unique_ptr<Transport> connect(int rank, int traffic, const std::vector<int>& members);

  // Every operation, in flight or later, ends with Error{lost} and this message; the first call counts.
  void abort(const std::string& why);
  // The same for the operations of one rank.
  void interrupt(int rank, const std::string& why);
  // Rank `rank` takes part in nothing more: peers that wait for it get Error{lost}.
  void finish(int rank);
  // The same, because it failed: they are told why the first one did. Who waits for others goes on, so that what all
  // were just agreeing upon comes to its end on every rank.
  void fail(int rank, const std::string& why);

 private:
  friend class ThreadTransport;
  enum class End : unsigned char { none, finished, failed };
  struct Message {
    enum class State { posted, claimed, done };
    std::byte* data;
    std::size_t bytes;
    int from, to;
    State state;
  };
  struct Endpoint {
    std::condition_variable changed;
    std::vector<Message*> inbox;
  };
  struct Channel {
    explicit Channel(std::vector<int> ranks) : members(std::move(ranks)), endpoints(members.size()) {}
    std::vector<int> members;
    std::vector<Endpoint> endpoints;
  };
  void notify_all();
  // Why `rank` cannot go on waiting for `peer`; empty when it can. REQUIRES: mutex_ is held.
  std::string trouble(int rank, int peer) const;

  std::mutex mutex_;  // guards everything below and every channel
  std::map<std::tuple<int, std::vector<int>, int>, std::shared_ptr<Channel>> channels_;  // traffic, members, n-th call
  std::map<std::tuple<int, std::vector<int>, int>, int> calls_;                          // traffic, members, rank
  std::string aborted_;
  std::string failure_;  // of the first rank that failed
  std::vector<std::string> interrupted_;
  std::vector<End> ended_;
};

}  // namespace dstrain
