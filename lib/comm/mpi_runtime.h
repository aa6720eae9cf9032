#pragma once
// MpiRuntime: one communication thread a process, which makes every MPI call, MPI_Init_thread and MPI_Finalize
// included.
//
// Operations are non-blocking inside MPI and all progress together, so no order between posters can deadlock. The
// thread sleeps while nothing is open; while something is, it polls, at first yielding the core after each look, then
// sleeping for 1/32 of the time waited so far (at most 0.5 ms): ranks that share a core do not starve each other.

#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "lib/comm/transport.h"

namespace dstrain {

class MpiRuntime {
 public:
  // Starts MPI. Collective over all ranks. `communicators` duplicates of the world are made. Throws Error{lost}, also
  // when MPI has not started after `limit` seconds or the launcher ends meanwhile: then a thread is left behind in MPI,
  // and the process should end without further ado.
  MpiRuntime(int communicators, double limit);
  // Collective: waits for all ranks, then ends MPI. After interrupt() or an error of MPI's own, or while an exception
  // unwinds, MPI is left as it is and the launcher is told by the exit of this process.
  ~MpiRuntime();
  MpiRuntime(const MpiRuntime&) = delete;
  MpiRuntime& operator=(const MpiRuntime&) = delete;

  int rank() const;
  int size() const;
  int local_rank() const;
  int local_size() const;
  const std::string& host_name() const;
  const std::vector<int>& host_ranks() const;  // world ranks of this host, ascending

  // Transport::exchange with world ranks as peers, on one communicator; `tag` tells its groups apart. From any thread,
  // many at a time. Throws Error{lost} on MPI errors or interrupt().
  void exchange(int communicator, int tag, std::span<const Part> sends, std::span<const Part> receives);
  void interrupt(const std::string& why);

  // Notes: short messages that nobody waits for. Off until listen(); then the thread looks for them now and then, so
  // one arrives some 20 ms late. From any thread. A note replaces one to the same rank that has not left yet.
  struct Note {
    int from;
    std::vector<std::byte> bytes;
  };
  void listen();
  void send_note(int to, std::span<const std::byte> bytes);
  std::vector<Note> take_notes();

 private:
  struct Operation;
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace dstrain
