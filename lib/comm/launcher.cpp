#include "lib/comm/launcher.h"

#include <sys/syscall.h>
#include <unistd.h>
#include <csignal>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <fstream>
#include <iterator>

#include "lib/core/errors.h"

namespace dstrain {

namespace {

// Name and parent of a process, from the kernel's own file system.
struct Ancestor {
  std::string name;
  int parent = 0;
};

Ancestor look_up(int process) {
  std::ifstream in(format("/proc/{}/stat", process));
  std::string text((std::istreambuf_iterator<char>(in)), {});
  const auto open = text.find('('), close = text.rfind(')');
  if (open == std::string::npos || close == std::string::npos || close + 4 >= text.size()) return {};
  return {text.substr(open + 1, close - open - 1), std::atoi(text.c_str() + close + 4)};
}

bool is_launcher(const std::string& name) {
  const char* const known[] = {"mpirun", "mpiexec", "orterun",    "orted",           "prte",
                               "prted",  "prterun", "slurmstepd", "hydra_pmi_proxy", "mpiexec.hydra"};
  return std::any_of(std::begin(known), std::end(known), [&](const char* k) { return name == k; });
}

}  // namespace

bool launched_by_mpi() {
  for (const char* name : {"OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_RANK"})
    if (std::getenv(name) != nullptr) return true;
  return false;
}

int launched_rank() {
  for (const char* name : {"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK"})
    if (const char* value = std::getenv(name)) return std::atoi(value);
  return 0;
}

int slurm_tasks() {
  const char* const step = std::getenv("SLURM_STEP_ID");
  const char* const tasks = std::getenv("SLURM_STEP_NUM_TASKS");
  return step && tasks ? std::max(1, std::atoi(tasks)) : 1;
}

int process_descriptor(int process) {
#ifdef SYS_pidfd_open
  return static_cast<int>(syscall(SYS_pidfd_open, process, 0));
#else
  (void)process;
  return -1;
#endif
}

Launcher::Launcher() : process_(getppid()) {
  name_ = look_up(process_).name;
  constexpr int kGenerations = 16;
  int process = process_;
  for (int i = 0; i < kGenerations && process > 1; ++i) {
    const Ancestor a = look_up(process);
    if (is_launcher(a.name)) {
      process_ = process;
      name_ = a.name;
      launches_ = true;
      break;
    }
    process = a.parent;
  }
  descriptor_ = process_descriptor(process_);
}

Launcher::~Launcher() {
  if (descriptor_ >= 0) close(descriptor_);
}

bool Launcher::alive() const { return process_ <= 1 || kill(process_, 0) == 0 || errno == EPERM; }

std::string Launcher::to_string() const {
  return format("{} (process {})", name_.empty() ? "the parent" : name_, process_);
}

}  // namespace dstrain
