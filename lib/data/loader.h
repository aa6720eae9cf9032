#pragma once
// Batches by cursor, prefetched on a thread of their own.

#include <condition_variable>
#include <exception>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "lib/comm/process_group.h"
#include "lib/core/arena.h"
#include "lib/core/clock.h"
#include "lib/data/sources.h"
#include "lib/layers/mtp_targets.h"

namespace dstrain {

// Which part of a step a data rank works on. Micro-batch m of data rank r holds the samples
//   cursor + r * (global_batch / data_ranks) + m * micro_batch + b,  0 <= b < micro_batch.
struct BatchPlan {
  Index global_batch = 0;  // samples a step
  Index micro_batch = 0;   // samples a micro-batch
  int data_ranks = 1;
  int data_rank = 0;
  Index end = -1;       // samples at and past it are all padding (an evaluation's last step); -1: none
  bool pinned = false;  // page-locked memory: what a GPU copies from
  // Positions restart at each document of a sample, first_keys is made, and the first token of a document is not
  // predicted from the one before: the documents (or what of them falls into the sample) stand alone.
  bool document_mask = false;
  Index mtp_depths = 0;  // rows of Batch::mtp_targets

  Index micro_batches() const { return global_batch / data_ranks / micro_batch; }
};

// Bytes that a loader holds for its batches, of sequences of `length` tokens.
std::size_t loader_bytes(const BatchPlan& plan, Index length);

// Positions of samples begin .. end - 1 that predict a token, as BatchReader weighs them.
Index predicted_tokens(TokenSources& sources, const Sampler& sampler, Index begin, Index end, bool document_mask);

// A step's share of one data rank. Tensors are views of the loader's memory.
struct StepData {
  Index cursor = -1;               // first global sample of the step
  std::vector<Batch> batches;      // the micro-batches, in order
  Index valid_tokens = 0;          // positions with a loss weight, over all data ranks
  std::vector<double> mtp_tokens;  // the same of each depth of multi-token prediction
  double wait_seconds = 0;         // that next() waited for it
};

inline ValidTokens valid_tokens(const StepData& step) {
  return {static_cast<double>(step.valid_tokens), step.mtp_tokens};
}

// Reads steps in the caller's thread: for evaluation, and inside Loader. Sources are used by one thread at a time.
class BatchReader {
 public:
  // `sources` and `sampler` are borrowed.
  BatchReader(TokenSources& sources, const Sampler& sampler, const BatchPlan& plan);

  // Makes the memory of `step` unless it has some.
  void prepare(StepData& step, Buffer& memory) const;
  // Fills `step`, prepared first if need be. valid_tokens is this rank's own count.
  void read(Index cursor, StepData& step, Buffer& memory);

 private:
  void read_sample(Index global_sample, Index row, const Batch& batch);

  TokenSources& sources_;
  const Sampler& sampler_;
  BatchPlan plan_;
  std::vector<std::int32_t> tokens_;  // (T + 1)
  std::vector<Index> starts_;         // of documents within the source
  Index valid_ = 0;
};

class Loader {
 public:
  static constexpr int kSlots = 3;  // steps held: given out now, given out before, being filled

  // `group` sums the valid-token count over the data ranks; it is of the poster "loader" and is used by the loader's
  // thread only; null when there is one data rank. `sources`, `sampler`, `group` and `clock` are borrowed.
  Loader(TokenSources& sources, const Sampler& sampler, const BatchPlan& plan, ProcessGroup* group,
         const Clock& clock = system_clock());
  // Waits for the count that may be under way. When data ranks end at different steps, a peer's end (or the world's
  // interrupt()) ends that wait.
  ~Loader();
  Loader(const Loader&) = delete;
  Loader& operator=(const Loader&) = delete;

  // The step that starts at global sample `cursor`; the step after it (cursor + global_batch) is then prefetched. Any
  // cursor may be asked for, if all data ranks ask for the same ones in the same order. The result is valid until the
  // call after the next. Throws what the loader's thread met, and the same again at every later call.
  const StepData& next(Index cursor);

 private:
  struct Slot {
    StepData step;
    Buffer memory;
  };
  void work();

  BatchReader reader_;
  BatchPlan plan_;
  ProcessGroup* group_;
  const Clock& clock_;
  Slot slots_[kSlots];
  std::mutex mutex_;  // guards everything below
  std::condition_variable changed_;
  Index wanted_ = -1;    // the cursor that next() waits for, or -1
  Index prefetch_ = -1;  // the cursor to read when nothing is wanted, or -1
  int ready_ = -1;       // the slot that is filled and not given out, or -1
  int current_ = -1;     // the slot given out last
  int previous_ = -1;
  bool stop_ = false;
  std::exception_ptr error_;
  std::thread thread_;
};

}  // namespace dstrain
