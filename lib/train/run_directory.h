#pragma once
// The files of a run: DIR/job.yaml (resolved), metrics.jsonl, log.txt, exit.json, tuned.txt, trace.json, tensorboard/,
// report.html, checkpoints/.
// All names are made here.

#include <string>

#include "lib/config/config.h"
#include "lib/core/errors.h"
#include "lib/core/files.h"

namespace dstrain {

class RunDirectory {
 public:
  explicit RunDirectory(std::string path) : path_(std::move(path)) {}

  const std::string& path() const { return path_; }
  std::string job() const { return path_ + "/job.yaml"; }
  std::string metrics() const { return path_ + "/metrics.jsonl"; }
  std::string log() const { return path_ + "/log.txt"; }
  std::string exit() const { return path_ + "/exit.json"; }
  std::string tuned() const { return path_ + "/tuned.txt"; }  // measured choices of kernels
  std::string trace(int rank) const {
    return rank == 0 ? path_ + "/trace.json" : format("{}/trace-{}.json", path_, rank);
  }
  std::string report() const { return path_ + "/report.html"; }
  std::string tensorboard() const { return path_ + "/tensorboard"; }  // a directory of event files
  std::string checkpoints() const { return path_ + "/checkpoints"; }

  // Creates the directory and an empty log, removes an old exit.json. Throws Error{write}, also when a link or another
  // user's directory stands in the place of one of ours.
  void create(const Files& files) const;
  void write_job(const Files& files, const Config& config) const;
  // {code, reason, step}: how the run ended. Best effort: a run that cannot write it ends with its code all the same.
  void write_exit(const Files& files, ExitCode code, const std::string& reason, std::int64_t step) const noexcept;

 private:
  std::string path_;
};

}  // namespace dstrain
