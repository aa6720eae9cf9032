#pragma once
// Watchdog: a thread of each rank that finds out when another rank is gone or hangs, and ends this one.
//
// On a host, ranks see each other's whereabouts in shared memory and are told by the kernel when a process ends.
// Between hosts the lowest rank of each (its leader) sends rank 0 a note ten times a second and gets one back. Whoever
// finds a rank lost first composes the one message and hands the verdict to all; so nobody waits for the launcher to
// clean up. Only monotonic time is used.

#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "lib/comm/launcher.h"
#include "lib/comm/rank_table.h"
#include "lib/core/clock.h"
#include "lib/core/errors.h"
#include "lib/core/stop_signal.h"

namespace dstrain {

// What is known of a rank.
struct RankView {
  int rank = 0;
  std::string host;
  const Whereabouts* here = nullptr;
  double silent = 0;   // seconds without a sign of life
  double stalled = 0;  // seconds without progress
  bool gone = false;   // its process has ended
};

// A sentence's worth of where a rank is: "step 17, backward, micro-batch 3, layer 2, last op 'matmul'".
std::string describe(const Whereabouts& here);

struct Finding {
  int lost = -1;     // the rank; -1: all wait for each other
  std::string what;  // "rank 2 on host a (process 17) was killed or died"
};

// Who is to blame, if anybody, among `ranks`; `all`: these are all ranks of the job. A rank whose process has ended
// unannounced comes first; then the one that is silent for longest past `silence`; then one that makes no progress for
// its limit and does not wait for others; and when every rank waits, one that waits for its own device, loader or
// writer past its limit, or all of them. Ranks that have announced their end are left out. Pure.
std::optional<Finding> find_lost(std::span<const RankView> ranks, bool all, double silence);

class Watchdog {
 public:
  // How this rank ends; called on the watchdog's thread, or on that of settle().
  struct Ending {
    ExitCode code;
    std::string text;
    std::int64_t step;
    bool directory;  // the run directory is this run's
  };
  struct Options {
    double silence = 25;  // seconds without a sign of life after which a rank or host is lost
    double start = 0;     // seconds for all ranks to come to the watchdog's start; 0: for ever
    // World ranks of the group of that name that a rank is in, for the message: who waits for whom.
    std::function<std::vector<int>(const std::string& group, int rank)> members;
    // Tells the user: called on one rank alone, and must come back soon.
    std::function<void(const Ending&)> tell;
    // Ends the process. May return in tests: then nothing more is watched.
    std::function<void(ExitCode)> leave;
  };

  // Collective over the world. `signal` is borrowed and may be null. Throws Error{lost} when not all ranks have come
  // within Options::start, or the launcher ends meanwhile: until a rank has come, nobody sees where it is.
  Watchdog(World& world, const Clock& clock, const StopSignal* signal, Options options);
  // Stops watching.
  ~Watchdog();
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;

  // Where this rank says what it does.
  Whereabouts& here() { return table_.mine(); }
  // This rank has come to its end by itself, with this code. Announce it before anything that peers could take for a
  // death. After an error, peers that still run when this process has ended end too, without a word of their own.
  void announce(ExitCode code) { here().ended = static_cast<int>(code); }
  // The end of a run that went well: waits for all ranks, under watch. Collective.
  void finish();
  // Gives the watchdog some time to find who is behind an Error{lost}; comes back when it has nothing to say.
  void settle(double seconds);

 private:
  struct Peer {
    int descriptor = -1;
    std::uint64_t beats = 0, changes = 0;
    double beat_at = 0, change_at = 0, gone_at = -1;
  };
  // What rank 0 knows of another host, from its leader's last note.
  struct Host {
    std::string name;
    double heard_at = 0;
    struct Row {
      int rank = 0;
      double silent = 0, stalled = 0;
      bool gone = false;
      alignas(Whereabouts) std::byte here[sizeof(Whereabouts)];
    };
    std::vector<Row> rows;
  };

  void loop();
  void observe(double now);
  void talk(double now);
  // Whether the thread has nothing more to watch.
  bool judge(double now);
  std::vector<RankView> views(double now, bool all) const;
  std::string waiting_for(int lost, std::span<const RankView> ranks) const;
  // Ends the run for all, if nobody else has begun to.
  bool decide(ExitCode code, const std::function<std::string()>& text);
  bool follow();
  bool single_host() const { return leaders_.size() <= 1; }

  class Meeting;

  World& world_;
  const Clock& clock_;
  const StopSignal* signal_;
  Options options_;
  std::unique_ptr<Meeting> meeting_;  // while the watchdog starts
  RankTable table_;
  std::unique_ptr<ProcessGroup> everyone_;
  std::optional<Launcher> launcher_;
  std::vector<Peer> peers_;    // as in the table
  std::vector<int> leaders_;   // of all hosts, ascending
  std::map<int, Host> hosts_;  // by leader, without this one; on rank 0 all, elsewhere that of rank 0
  std::string root_host_;
  double last_tick_ = 0, last_talk_ = 0;
  int stop_ = -1;  // an eventfd: written to when the thread is to end
  std::thread thread_;
};

}  // namespace dstrain
