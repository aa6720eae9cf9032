#pragma once
// World: this rank's view of all ranks, and the factory of its groups.

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "lib/comm/host_group.h"
#include "lib/comm/nccl_group.h"
#include "lib/mesh/mesh.h"

namespace dstrain {

class MpiRuntime;

// Who calls. Groups of different posters never wait for each other, whatever the order of their calls.
enum class Poster : unsigned char {
  compute,     // the trainer's thread
  gradients,   // reduction of gradients beside backward
  loader,      // token counts, a batch ahead
  checkpoint,  // the writer's thread
  watchdog,    // liveness, stop requests
  guard,       // what ranks tell each other of bad numbers
  trainer,     // what ranks agree on between steps, in host memory
};
constexpr int kPosters = 7;
// Multiprocessors that reductions of the poster `gradients` take on a GPU. They have the whole backward to finish in.
constexpr int kGradientBlocks = 4;
const char* name_of(Poster poster);

// How ranks with GPUs may talk.
struct GpuOptions {
  bool nvls = false;  // NCCL may use NVLink multicast
};

class World {
 public:
  virtual ~World() = default;

  // Gives the calling thread, this rank's, its GPU: local rank modulo the host's devices. Groups that are made from now
  // on for the posters compute and gradients take tensors in GPU memory: by NCCL when every rank of an MPI world has a
  // card of its own, else through host memory. Collective over the world, before groups are made. Throws Error{device}.
  void use_gpus(const GpuOptions& options);

  // The world of this process: MPI when a launcher's variables are set (OMPI_COMM_WORLD_SIZE, PMIX_RANK or PMI_RANK),
  // else this process alone. Make it once a process and destroy it when no group is left; destroying it is collective,
  // unless an exception is unwinding: then peers learn from the launcher that this rank is gone. Throws Error{lost}
  // when MPI cannot start, or has not within `limit` seconds.
  static std::unique_ptr<World> make(double limit = 600);
  // Rank `rank` of `size` for planning: its groups work on dry streams only, and need no peers.
  static std::unique_ptr<World> dry(int rank, int size);

  virtual int rank() const = 0;
  virtual int size() const = 0;
  virtual int local_rank() const = 0;  // among the ranks of this host
  virtual int local_size() const = 0;
  virtual const std::string& host_name() const = 0;
  virtual const char* kind() const = 0;  // "self", "mpi", "threads", "dry"
  // World ranks of this host that are processes of their own, this one among them, ascending; thread ranks count alone.
  virtual std::vector<int> host_ranks() const { return {rank()}; }
  // The processes' messages beside all groups; null when there are none.
  virtual MpiRuntime* runtime() { return nullptr; }

  // A group of world ranks, this one among them; member i of the list is rank i of the group. Not a collective call,
  // but every member must make it, with the same list, and in the same order as its other groups. The group's name is
  // the kind's, its traffic apart from that of other kinds and posters. The world outlives the group.
  std::unique_ptr<ProcessGroup> group(Poster poster, GroupKind kind, std::span<const int> members,
                                      std::size_t message_cut = kMessageCut);

  // From any thread: every operation of this rank, in flight or later, ends with Error{lost} and this message. For
  // signal handling and watchdogs.
  virtual void interrupt(const std::string& why) = 0;

  // Groups that are made from now on compare what their members do before they do it (checked_group.h).
  void check_collectives() { checked_ = true; }

 protected:
  virtual std::unique_ptr<Transport> transport(Poster poster, GroupKind kind, std::span<const int> members) = 0;
  // interrupt() for what runs on GPUs.
  void interrupt_communicators(const std::string& why);

 private:
  enum class Gpus : unsigned char { none, shared, own };
  Gpus gpus_ = Gpus::none;
  GpuOptions gpu_options_;
  bool checked_ = false;
  // Groups with the same members on the same stream share a communicator.
  std::map<std::pair<Poster, std::vector<int>>, std::shared_ptr<NcclCommunicator>> communicators_;
  std::mutex mutex_;  // of communicators_
};

// Runs body(world) on `ranks` threads of this process, one a rank, and returns when all have ended. When a rank throws,
// or returns while a peer waits for it, its peers get Error{lost} naming it; then the first error is rethrown here.
void run_threads(int ranks, const std::function<void(World&)>& body);

// The groups of the mesh that this rank is in, for one poster. Groups of one rank work like any other.
struct Groups {
  std::unique_ptr<ProcessGroup> tensor;
  std::unique_ptr<ProcessGroup> pipeline;
  std::unique_ptr<ProcessGroup> replica;         // data * context
  std::unique_ptr<ProcessGroup> expert;          // holders of different experts
  std::unique_ptr<ProcessGroup> expert_replica;  // holders of the same experts
  std::unique_ptr<ProcessGroup> embedding;       // null on the stages between first and last
  std::unique_ptr<ProcessGroup> model;
  std::unique_ptr<ProcessGroup> kv_replica;
  std::unique_ptr<ProcessGroup> control;
};
// REQUIRES: mesh.ranks() == world.size(). kv_heads 0: kv_replica is this rank alone.
Groups make_groups(World& world, const Mesh& mesh, Poster poster, Index kv_heads = 0);

}  // namespace dstrain
