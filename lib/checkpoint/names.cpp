#include "lib/checkpoint/names.h"

#include <algorithm>
#include <charconv>

namespace dstrain {

std::string checkpoints_directory(const std::string& run_directory) { return join_path(run_directory, "checkpoints"); }
std::string step_name(Index step) { return format("step_{:08d}", step); }
std::string shard_name(int rank) { return format("rank_{:05d}.h5", rank); }

std::optional<Index> step_of(const std::string& name) {
  constexpr std::string_view prefix = "step_";
  if (!name.starts_with(prefix)) return std::nullopt;
  Index step = -1;
  const char* end = name.data() + name.size();
  const auto read = std::from_chars(name.data() + prefix.size(), end, step);
  // Exactly the name that step_name gives: no sign, no other count of zeros.
  if (read.ec != std::errc() || read.ptr != end || step < 0 || step_name(step) != name) return std::nullopt;
  return step;
}

std::vector<Index> list_steps(const Files& files, const std::string& directory) {
  std::vector<Index> steps;
  if (!files.is_directory(directory)) return steps;
  for (const std::string& name : files.list(directory))
    if (const auto step = step_of(name); step && files.is_directory(join_path(directory, name))) steps.push_back(*step);
  std::sort(steps.rbegin(), steps.rend());
  return steps;
}

void remove_leftovers(const Files& files, const std::string& directory) {
  if (!files.is_directory(directory)) return;
  for (const std::string& name : files.list(directory))
    if (name.starts_with("step_") && (name.ends_with(kPartialSuffix) || name.ends_with(kTrashSuffix)))
      remove_tree(files, join_path(directory, name));
}

}  // namespace dstrain
