#pragma once
// What started this process as one rank of many: its variables, and whether it still lives.

#include <string>

namespace dstrain {

// Whether a launcher started this process as a rank: OMPI_COMM_WORLD_SIZE, PMIX_RANK or PMI_RANK is set.
bool launched_by_mpi();
// The rank that the launcher gave this process, 0 when there is none. Needs no MPI: for messages before and after it.
int launched_rank();
// Tasks of the Slurm step that this process is one of; 1 outside of a step. More than one without launched_by_mpi()
// means that srun was told no --mpi, and that every task would take itself for the only rank.
int slurm_tasks();

// The process that looks after this rank: the nearest ancestor that is a launcher (mpirun, orted, slurmstepd, ...),
// else the parent. From its end on nobody is there to end or to wait for the rank.
class Launcher {
 public:
  Launcher();  // finds it
  ~Launcher();
  Launcher(const Launcher&) = delete;
  Launcher& operator=(const Launcher&) = delete;

  bool alive() const;
  // Whether it ends every rank when one has failed: mpirun and its daemons do, Slurm only when it is told to.
  bool ends_all_ranks() const { return launches_ && name_ != "slurmstepd"; }
  // A descriptor that polls readable at its end; -1 when the kernel has none, then ask alive().
  int descriptor() const { return descriptor_; }
  std::string to_string() const;  // "mpirun (process 123)"

 private:
  int process_ = 0;
  int descriptor_ = -1;
  std::string name_;
  bool launches_ = false;  // it is a launcher that is known
};

// A descriptor that polls readable when the process has ended; -1 when there is none such or the kernel cannot.
int process_descriptor(int process);

}  // namespace dstrain
