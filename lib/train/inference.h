#pragma once
// A trained run, opened to be evaluated or to write.

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "lib/checkpoint/reader.h"
#include "lib/core/files.h"
#include "lib/tokenizer/tokenizer.h"
#include "lib/train/engine.h"

namespace dstrain {

// RUN for RUN, RUN/checkpoints/step_N and RUN/checkpoints/step_N/.
struct RunPath {
  std::string run;
  std::string checkpoint;  // empty: the newest
};
RunPath run_path(const Files& files, std::string path);

// The newest usable checkpoint of the run at `path`, or the checkpoint that `path` is. Collective over `group`. Throws
// Error{checkpoint} when there is none.
Checkpoint open_run(const Files& files, const std::string& path, ProcessGroup& group,
                    const std::function<void(const std::string&)>& report);

// The resolved job of a run directory (or of one of its checkpoints), laid out for `ranks` ranks: as in the job when
// its mesh fits, else all of them data parallel. `overrides` are key=value. Throws Error{usage} when there is no run.
Config config_of_run(const Files& files, const std::string& path, const std::vector<std::string>& overrides, int ranks);

// The tokenizer that `named` is, or else the job's data.tokenizer; none when there is neither. Throws Error{usage} when
// the job's file is there and is another tokenizer: the model has learnt that one's ids.
std::optional<Tokenizer> tokenizer_of(const Files& files, const Config& config, const std::string& named);

// Loads the weights of open_run()'s checkpoint into the engine. Collective over the world. Returns its step.
Index load_run(const Files& files, const std::string& path, World& world, Engine& engine,
               const std::function<void(const std::string&)>& report);

}  // namespace dstrain
