#pragma once
// The way of tokens to experts that other ranks hold, and back. Experts lie evenly on the members of the expert group,
// in order. A row goes once to each member that has one of its experts, with all its choices; the member sums its own
// experts' part of the row, so that one row comes back.
//
// What a member receives depends on the router. Buffers hold `receive_factor` times its share of an equal load; when a
// member would get more, all go through their rows in equal parts, so small that no choice of experts is too much.
// Nothing is dropped. The numbers of rows pass through the host, once a part.

#include <optional>
#include <span>
#include <vector>

#include "lib/comm/process_group.h"
#include "lib/core/arena.h"
#include "lib/core/stream.h"

namespace dstrain {

class ExpertExchange {
 public:
  struct Sizes {
    Index experts = 0;   // of a layer, those of all members
    Index chosen = 0;    // K
    Index max_rows = 0;  // of a pass, on any member
    double receive_factor = 2;
  };
  // `group` and `lane` are borrowed. `lane`: the stream on which rows travel while that of the calls computes something
  // else; null: there is none.
  ExpertExchange(ProcessGroup& group, Device device, const Sizes& sizes, Stream* lane = nullptr);

  Index own_experts() const { return sizes_.experts / group_.size(); }
  Index first_expert() const { return own_experts() * group_.rank(); }

  // Rows [begin, end) of a pass on their way.
  struct Part {
    Index begin = 0, end = 0;
    Tensor place;                       // (end - begin, K) i32: which of the rows that come back; -1: none
    Tensor row_at;                      // (sent) i32: rows of the part in the order in which they are sent
    std::vector<Index> sent, received;  // rows, for each member
    Index rows = 0;                     // that are received
    Index choices = 0;                  // of theirs, of experts here
    // What a plan runs for the memory that it needs at most; its cost does not count.
    bool bound = false;
  };
  // `experts` (rows, K) i32 as Route has them. Sorts them, asks the members for their numbers, and leaves in `offsets`
  // (E + 1) i32 what ExpertOrder does for all experts. What the parts hold lies in `memory`. What is enqueued between
  // start() and parts() runs while the numbers travel.
  void start(Stream& stream, Arena& memory, Arena& scratch, const Tensor& experts, const Tensor& offsets);
  // Waits for the numbers. Parts without numbers (received is empty) are counted one by one; all members have as many.
  std::vector<Part> parts();
  // Fills a part that has no numbers yet, in `scratch`.
  void count(Stream& stream, Arena& scratch, const Tensor& experts, Part& part);

  // What is sent next needs what is enqueued on `stream` so far, and nothing later. start() and count() say so too.
  void ready(Stream& stream) { follow(lane(stream), stream); }
  // Sends the part's rows of each of `tensors` (rows of the pass, columns); they arrive in tensors (part.rows, columns)
  // of `scratch`, member by member, for what is enqueued after wait().
  std::vector<Tensor> send(Stream& stream, Arena& scratch, const Part& part, std::span<const Tensor> tensors);
  void wait(Stream& stream);
  // Answers each received row of each of `tensors` (part.rows, columns); gives the answers to what this rank has sent,
  // (sent, columns) in the order of row_at, for what is enqueued next.
  std::vector<Tensor> answer(Stream& stream, Arena& scratch, const Part& part, std::span<const Tensor> tensors);

 private:
  Index part_rows() const;     // of parts that always fit
  Index most_choices() const;  // that are received at once
  Tensor sort(Stream& stream, Arena& memory, Arena& scratch, const Tensor& experts, const Tensor& offsets, Part& part);
  void gather(Stream& stream, Arena& scratch, const Tensor& own);
  void read(Part& part) const;
  Part planned(bool bound) const;
  std::vector<Tensor> exchange(Stream& stream, Arena& scratch, std::span<const Tensor> tensors,
                               const std::vector<Index>& sent, const std::vector<Index>& received);
  Stream& lane(Stream& stream);
  void follow(Stream& later, Stream& earlier);

  ProcessGroup& group_;
  Device device_;
  Sizes sizes_;
  Stream* lane_;
  Buffer numbers_;  // (members, width): of each member its offsets by member and its offsets by expert
  std::optional<gpu::Event> event_;
  Part started_;
};

}  // namespace dstrain
