#pragma once
// Action and Program: a pipeline schedule as a value, one list of actions a rank.
//
// A chunk is a stage of the model, numbered from the input; rank owner[chunk] holds it. The text of an action is
// <chunk><kind><micro-batch>: 2F0 is the forward of micro-batch 0 on chunk 2; 1SEND_ACT3 sends chunk 1's output of
// micro-batch 3 to chunk 2, where 2RECV_ACT3 takes it; 2SEND_GRAD3 sends the gradient of chunk 2's input to chunk 1,
// where 1RECV_GRAD3 takes it. Transfers that are posted together are joined: 1SEND_ACT3+1RECV_GRAD0.

#include <string>
#include <vector>

namespace dstrain {

struct Transfer {
  enum class Kind : unsigned char { send_act, recv_act, send_grad, recv_grad };
  Kind kind;
  int chunk;
  int micro_batch;
  int slot = 0;  // of recv_act: where the input goes; set by assign_slots, not part of the text

  bool sends() const { return kind == Kind::send_act || kind == Kind::send_grad; }
  bool activation() const { return kind == Kind::send_act || kind == Kind::recv_act; }
  // The chunk at the other end.
  int peer_chunk() const { return kind == Kind::send_act || kind == Kind::recv_grad ? chunk + 1 : chunk - 1; }
  friend bool operator==(const Transfer& a, const Transfer& b) {
    return a.kind == b.kind && a.chunk == b.chunk && a.micro_batch == b.micro_batch;
  }
};

struct Action {
  enum class Kind : unsigned char { forward, backward, exchange };
  Kind kind;
  int chunk = 0;                    // forward, backward
  int micro_batch = 0;              // forward, backward
  int slot = 0;                     // forward, backward: whose activations; set by assign_slots, not part of the text
  std::vector<Transfer> transfers;  // exchange: posted together, not empty

  friend bool operator==(const Action& a, const Action& b) {
    return a.kind == b.kind && a.transfers == b.transfers &&
           (a.kind == Kind::exchange || (a.chunk == b.chunk && a.micro_batch == b.micro_batch));
  }
};

inline Action forward(int chunk, int micro_batch) { return {Action::Kind::forward, chunk, micro_batch, 0, {}}; }
inline Action backward(int chunk, int micro_batch) { return {Action::Kind::backward, chunk, micro_batch, 0, {}}; }

struct Program {
  std::string name;
  int micro_batches = 0;
  bool backward = true;                    // false: forward only
  std::vector<int> owner;                  // chunk -> rank
  std::vector<std::vector<Action>> ranks;  // rank -> its actions, in order

  int chunks() const { return static_cast<int>(owner.size()); }
  int rank_count() const { return static_cast<int>(ranks.size()); }
  // The rank at the other end. REQUIRES: the peer chunk exists.
  int peer(const Transfer& t) const { return owner[static_cast<std::size_t>(t.peer_chunk())]; }
  friend bool operator==(const Program&, const Program&) = default;
};

}  // namespace dstrain
