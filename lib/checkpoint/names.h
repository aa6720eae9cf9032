#pragma once
// The names of a checkpoint directory, in one place. See FORMAT.md.

#include <optional>
#include <string>
#include <vector>

#include "lib/core/files.h"
#include "lib/core/shape.h"

namespace dstrain {

std::string checkpoints_directory(const std::string& run_directory);  // RUN/checkpoints
std::string step_name(Index step);                                    // step_00001000
std::string shard_name(int rank);                                     // rank_00000.h5
constexpr const char* kManifestName = "manifest.jsonl";
constexpr const char* kPartialSuffix = ".partial";
constexpr const char* kTrashSuffix = ".trash";

// The step of a complete checkpoint's name; nothing for other names.
std::optional<Index> step_of(const std::string& name);
// Steps of the complete checkpoints in `directory`, newest first; empty when it does not exist.
std::vector<Index> list_steps(const Files& files, const std::string& directory);
// Removes .partial and .trash directories. REQUIRES: the run's lock is held.
void remove_leftovers(const Files& files, const std::string& directory);

}  // namespace dstrain
