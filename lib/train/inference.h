#pragma once
// A trained run, opened to be evaluated or to write.

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "lib/core/files.h"
#include "lib/tokenizer/tokenizer.h"
#include "lib/train/engine.h"

namespace dstrain {

// The resolved job of a run directory (or of one of its checkpoints), laid out for `ranks` ranks: as in the job when
// its mesh fits, else all of them data parallel. `overrides` are key=value. Throws Error{usage} when there is no run.
Config config_of_run(const Files& files, const std::string& path, const std::vector<std::string>& overrides, int ranks);

// The tokenizer that `named` is, or else the job's data.tokenizer; none when there is neither. Throws Error{usage} when
// the job's file is there and is another tokenizer: the model has learnt that one's ids.
std::optional<Tokenizer> tokenizer_of(const Files& files, const Config& config, const std::string& named);

// Loads the weights of the newest usable checkpoint of the run at `path`, or of the checkpoint that `path` is, into the
// engine. Collective over the world. Returns its step. Throws Error{checkpoint} when there is none.
Index load_run(const Files& files, const std::string& path, World& world, Engine& engine,
               const std::function<void(const std::string&)>& report);

}  // namespace dstrain
