#pragma once
// Stream: what an op needs to run. CPU streams run at once, in the caller.

#include <cstddef>

#include "lib/core/arena.h"
#include "lib/core/device.h"
#include "lib/core/ledger.h"
#include "lib/core/thread_pool.h"

namespace dstrain {

class Stream {
 public:
  // `device` is where ops run; `target`, cpu or cuda, is whose workspace a dry stream counts. `pool` and `workspace`
  // are borrowed and may be null on a dry stream; `ledger` is borrowed and may be null.
  Stream(Device device, Device target, ThreadPool* pool, Arena* workspace, Ledger* ledger)
      : device_(device), target_(target), pool_(pool), workspace_(workspace), ledger_(ledger) {}

  Device device() const { return device_; }
  Device target() const { return target_; }
  ThreadPool& pool() const { return *pool_; }
  Arena& workspace() const { return *workspace_; }
  Ledger* ledger() const { return ledger_; }
  void set_ledger(Ledger* ledger) { ledger_ = ledger; }

 private:
  Device device_;
  Device target_;
  ThreadPool* pool_;
  Arena* workspace_;
  Ledger* ledger_;
};

}  // namespace dstrain
