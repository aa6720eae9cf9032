#pragma once
// File names with * and ?.

#include <string>
#include <string_view>
#include <vector>

#include "lib/core/files.h"

namespace dstrain {

// Whether all of `name` matches: * stands for any bytes, ? for one. Quadratic at worst.
bool glob_matches(std::string_view pattern, std::string_view name);
// Paths that match a glob with * and ? in its last part, sorted; a pattern without them is itself.
std::vector<std::string> expand_glob(const Files& files, const std::string& pattern);

}  // namespace dstrain
