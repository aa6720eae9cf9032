#pragma once
// RankTable: the whereabouts of a host's ranks, in memory that they share.

#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

#include "lib/comm/world.h"
#include "lib/core/whereabouts.h"

namespace dstrain {

// How the run ends for everybody, once somebody has found out that it must. Written by the rank that wins claim().
struct Verdict {
  enum State : std::int32_t { none, claimed, told };
  static constexpr std::size_t kText = 2048;
  std::atomic<std::int32_t> state{none};
  std::atomic<std::int32_t> code{0};
  char text[kText] = {};

  bool claim() {
    std::int32_t expected = none;
    return state.compare_exchange_strong(expected, claimed);
  }
};

class RankTable {
 public:
  // Collective over all ranks. The memory has no name and goes with its last process; whoever may look into this
  // process finds it as /proc/PROCESS/fd/*, "memfd:dstrain-ranks". Ranks of a host that cannot share (containers of
  // their own) have a table each, of one.
  explicit RankTable(World& world);
  ~RankTable();
  RankTable(const RankTable&) = delete;
  RankTable& operator=(const RankTable&) = delete;

  const std::vector<int>& ranks() const { return ranks_; }  // world ranks in the table, ascending
  std::size_t size() const { return ranks_.size(); }
  Whereabouts& at(std::size_t index) { return rows_[index]; }
  Whereabouts& mine() { return rows_[mine_]; }
  std::size_t index() const { return mine_; }
  Verdict& verdict() { return *verdict_; }

 private:
  void map(int descriptor, std::size_t rows);

  std::vector<int> ranks_;
  std::size_t mine_ = 0;
  int descriptor_ = -1;
  void* memory_ = nullptr;
  std::size_t bytes_ = 0;
  Verdict* verdict_ = nullptr;
  Whereabouts* rows_ = nullptr;
};

}  // namespace dstrain
