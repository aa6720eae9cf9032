#pragma once
// MpiRuntime: one communication thread a process, which makes every MPI call, MPI_Init_thread and MPI_Finalize
// included.
//
// Operations are non-blocking inside MPI and all progress together, so no order between posters can deadlock. The
// thread sleeps while nothing is open; while something is, it polls, at first yielding the core after each look, then
// sleeping for 1/32 of the time waited so far (at most 0.5 ms): ranks that share a core do not starve each other.

#include <memory>
#include <span>
#include <string>

#include "lib/comm/transport.h"

namespace dstrain {

class MpiRuntime {
 public:
  // Starts MPI. Collective over all ranks. `communicators` duplicates of the world are made. Throws Error{lost}.
  explicit MpiRuntime(int communicators);
  // Collective: waits for all ranks, then ends MPI. After interrupt(), or while an exception unwinds, MPI is left as it
  // is and the launcher is told by the exit of this process.
  ~MpiRuntime();
  MpiRuntime(const MpiRuntime&) = delete;
  MpiRuntime& operator=(const MpiRuntime&) = delete;

  int rank() const;
  int size() const;
  int local_rank() const;
  int local_size() const;
  const std::string& host_name() const;

  // Transport::exchange with world ranks as peers, on one communicator; `tag` tells its groups apart. From any thread,
  // many at a time. Throws Error{lost} on MPI errors or interrupt().
  void exchange(int communicator, int tag, std::span<const Part> sends, std::span<const Part> receives);
  void interrupt(const std::string& why);

 private:
  struct Operation;
  struct State;
  std::unique_ptr<State> state_;
};

// Whether a launcher started this process: OMPI_COMM_WORLD_SIZE, PMIX_RANK or PMI_RANK is set.
bool launched_by_mpi();

}  // namespace dstrain
