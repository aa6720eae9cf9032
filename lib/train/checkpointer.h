#pragma once
// Saves a run's state while training goes on, and restores it. Collective over all ranks.

#include <atomic>
#include <exception>
#include <functional>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "lib/checkpoint/reader.h"
#include "lib/checkpoint/writer.h"
#include "lib/config/config.h"
#include "lib/core/clock.h"
#include "lib/train/engine.h"
#include "lib/train/snapshot.h"

namespace dstrain {

class Checkpointer {
 public:
  // Everything is borrowed. `group` has all ranks and belongs to the checkpoint poster: from the first save on its
  // calls come from the writing thread. The snapshot's pages are touched here, so that the first save is as fast as
  // others.
  Checkpointer(const Config& config, const Files& files, const Clock& clock, const std::string& directory,
               ProcessGroup& group, Engine& engine);
  // Waits for the write in progress; its failure is dropped: call finish() to see it.
  ~Checkpointer();
  Checkpointer(const Checkpointer&) = delete;
  Checkpointer& operator=(const Checkpointer&) = delete;

  // Loads the newest usable checkpoint into the engine; nothing when there is none. `report` gets a line for each one
  // passed over. Throws Error{checkpoint} when there are some and none is usable, or when it belongs to another job.
  std::optional<CheckpointState> restore(const std::function<void(const std::string&)>& report);

  struct Stall {
    double wait = 0;   // seconds for the previous write to end
    double copy = 0;   // seconds for the snapshot
    double write = 0;  // seconds of writing, when checkpoint.async is false
    double total() const { return wait + copy + write; }
  };
  // Takes a snapshot and starts to write it; with checkpoint.async false also waits. The engine's next update waits for
  // the snapshot.
  Stall save(const CheckpointState& state);

  // How a write ended.
  struct Outcome {
    Index step = 0;
    double seconds = 0;
    std::uint64_t bytes = 0;
    std::vector<std::string> warnings;
    std::exception_ptr error;
  };
  // The writes that have ended since the last question.
  std::vector<Outcome> poll();
  // Waits for the write in progress first.
  std::vector<Outcome> finish();

  std::size_t snapshot_bytes() const { return snapshot_.bytes(); }

 private:
  void write(const CheckpointState& state);
  void collect();
  int device_ = -1;  // the GPU of the thread that made this, for the writing thread; -1: none

  const Config& config_;
  const Files& files_;
  const Clock& clock_;
  std::string directory_;
  ProcessGroup& group_;
  Engine& engine_;
  CheckpointWriter writer_;
  Snapshot snapshot_;
  std::thread thread_;
  std::atomic<bool> done_{false};
  std::optional<Outcome> outcome_;  // written by the thread before done_
  std::vector<Outcome> outcomes_;   // not asked for yet
};

// Identifies what must not change between a checkpoint and the job that resumes it: the keys that decide the model's
// shapes and maths, and the sequence length, which the data cursor counts in.
std::string job_identity(const Config& config);

}  // namespace dstrain
