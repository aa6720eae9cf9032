#include "lib/data/glob.h"

namespace dstrain {

bool glob_matches(std::string_view pattern, std::string_view name) {
  // Backtracks to the last star only, so that it is quadratic at worst.
  std::size_t p = 0, n = 0, star = std::string_view::npos, mark = 0;
  while (n < name.size()) {
    if (p < pattern.size() && pattern[p] == '*') {
      star = p++;
      mark = n;
    } else if (p < pattern.size() && (pattern[p] == '?' || pattern[p] == name[n])) {
      ++p;
      ++n;
    } else if (star != std::string_view::npos) {
      p = star + 1;
      n = ++mark;
    } else {
      return false;
    }
  }
  while (p < pattern.size() && pattern[p] == '*') ++p;
  return p == pattern.size();
}

std::vector<std::string> expand_glob(const Files& files, const std::string& pattern) {
  if (pattern.find_first_of("*?") == std::string::npos) return {pattern};
  const std::string directory = parent_path(pattern), last = pattern.substr(pattern.rfind('/') + 1);
  require(directory.find_first_of("*?") == std::string::npos, ExitCode::usage,
          "{}: * and ? are accepted in the last part of a path only", pattern);
  std::vector<std::string> out;
  if (files.is_directory(directory))
    for (const auto& name : files.list(directory))
      if (glob_matches(last, name))
        out.push_back(pattern.find('/') == std::string::npos ? name
                                                             : (directory == "/" ? "/" : directory + "/") + name);
  return out;
}

}  // namespace dstrain
