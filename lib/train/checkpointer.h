#pragma once
// Saves a run's state while training goes on, and restores it. Collective over all ranks.

#include <condition_variable>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "lib/checkpoint/reader.h"
#include "lib/checkpoint/writer.h"
#include "lib/comm/agree.h"
#include "lib/comm/world.h"
#include "lib/config/config.h"
#include "lib/core/abandonable_files.h"
#include "lib/core/clock.h"
#include "lib/train/engine.h"
#include "lib/train/snapshot.h"

namespace dstrain {

class Checkpointer {
 public:
  // Everything is borrowed; the clock outlives the process. The snapshot's pages are touched here, so that the first
  // save is as fast as others.
  Checkpointer(const Config& config, const Files& files, const Clock& clock, const std::string& directory, World& world,
               Engine& engine);
  // Waits for the write in progress; its failure is dropped: call finish() to see it. A write that was given up and
  // does not end is left behind: this rank's operations are interrupted, and its thread touches nothing more.
  ~Checkpointer();
  Checkpointer(const Checkpointer&) = delete;
  Checkpointer& operator=(const Checkpointer&) = delete;

  // Loads the newest usable checkpoint into the engine; nothing when there is none. `report` gets a line for each one
  // passed over. Throws Error{checkpoint} when there are some and none is usable, or when it belongs to another job.
  std::optional<CheckpointState> restore(const std::function<void(const std::string&)>& report);

  struct Stall {
    double wait = 0;       // seconds for the previous write to end
    double copy = 0;       // seconds for the snapshot
    double write = 0;      // seconds of writing, when checkpoint.async is false
    bool skipped = false;  // nothing was saved: a write that was given up is still under way on some rank
    double total() const { return wait + copy + write; }
  };
  // Takes a snapshot and starts to write it; with checkpoint.async false also waits. Waits first for the write in
  // progress, but never beyond its checkpoint.timeout. The engine's next update waits for the snapshot.
  Stall save(const CheckpointState& state);

  // How a write ended.
  struct Outcome {
    Index step = 0;
    double seconds = 0;
    std::uint64_t bytes = 0;
    std::vector<std::string> warnings;
    std::exception_ptr error;
  };
  // The writes that have ended, or were given up, since the last question.
  std::vector<Outcome> poll();
  // Waits for the write in progress first, as save() does.
  std::vector<Outcome> finish();
  // Lines for people about a write in progress: it takes twice the time of the one before, or was given up.
  std::vector<std::string> notices() { return std::exchange(notices_, {}); }

  std::size_t snapshot_bytes() const { return writing_->snapshot.bytes(); }

 private:
  // What the writing thread uses, kept as long as it lives.
  struct Writing {
    Writing(const Files& real, const std::string& directory, std::unique_ptr<ProcessGroup> all, const Config& config,
            const Engine& engine);
    AbandonableFiles files;
    std::unique_ptr<ProcessGroup> group;
    CheckpointWriter writer;
    Snapshot snapshot;
    int device = -1;  // the GPU of the thread that made this; -1: none

    std::mutex mutex;
    std::condition_variable ended;
    bool done = false;
    Outcome outcome;  // complete when done
    void write(const CheckpointState& state, const Clock& clock, Whereabouts* here);
  };
  bool done() const;
  // Until the write in progress has ended or has had its time; true when none is left.
  bool wait();
  void give_up_when_late();
  void collect();

  const Config& config_;
  const Files& files_;
  const Clock& clock_;
  std::string directory_;
  World& world_;
  Engine& engine_;
  std::unique_ptr<ProcessGroup> trainer_group_;
  Agreement agreement_;
  std::shared_ptr<Writing> writing_;
  std::thread thread_;
  Index step_ = 0;          // of the write in progress
  double begin_ = 0;        // of the write in progress
  double predicted_ = 0;    // seconds of the last write that ended well; 0: none has
  bool slow_told_ = false;  // of the write in progress
  bool given_up_ = false;
  std::vector<Outcome> outcomes_;  // not asked for yet
  std::vector<std::string> notices_;
};

// Identifies what must not change between a checkpoint and the job that resumes it: the keys that decide the model's
// shapes and maths, and the sequence length, which the data cursor counts in.
std::string job_identity(const Config& config);

}  // namespace dstrain
