#pragma once
// Ranks that must fail together.

#include <exception>
#include <functional>
#include <string>
#include <vector>

#include "lib/comm/process_group.h"

namespace dstrain {

// Host messages over a group, for one thread.
class Agreement {
 public:
  // `here`, borrowed, may be null: where this thread says that it waits.
  explicit Agreement(ProcessGroup& group, Whereabouts* here = nullptr) : group_(group) {
    stream_.set_whereabouts(here);
  }

  int rank() const { return group_.rank(); }
  int size() const { return group_.size(); }
  // Runs `work` on every rank; when it threw on any, throws the error of the lowest such rank on all, with "rank r: "
  // in front when there are more ranks than one. Error{lost} of the group itself passes through.
  void together(const std::function<void()>& work);
  Index sum(Index value);
  double sum(double value);
  // Root's text, on all ranks.
  std::string broadcast(std::string text, int root = 0);
  // On rank 0: the texts of all ranks; elsewhere empty.
  std::vector<std::string> gather(const std::string& text);
  std::vector<Index> all_gather(Index value);

 private:
  ProcessGroup& group_;
  ThreadPool pool_{1};
  Stream stream_{Device::cpu, Device::cpu, &pool_, nullptr, nullptr};
};

}  // namespace dstrain
