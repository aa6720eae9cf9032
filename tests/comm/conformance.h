#pragma once
// What every implementation of ProcessGroup must do. Runs on one rank of any world; throws, naming the case, when a
// result is not bit-equal to a plain loop (sums of more than two by NCCL: within their rounding). (Catch's assertions
// are not for many threads.)

#include "lib/comm/world.h"

namespace dstrain::test {

// A CPU stream with its own pool and ledger.
struct Host {
  explicit Host(int threads = 1) : pool(threads) {}
  ThreadPool pool;
  Ledger ledger;
  Stream stream{Device::cpu, Device::cpu, &pool, nullptr, &ledger};
};

// Groups of the first 1 .. min(4, size) ranks, and a group that is neither contiguous nor in rank order. On
// Device::cuda the world's ranks take their GPUs first, and compute and gradients run on two queues.
void conformance(World& world, Device device = Device::cpu);
// Two posters on two threads, in orders that deadlock if the posters order each other.
void posters_are_independent(World& world);
// Each collective past 2^31 bytes. Needs about 5 GiB a rank; for two ranks.
void huge_messages(World& world);

}  // namespace dstrain::test
