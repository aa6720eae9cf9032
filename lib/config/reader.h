#pragma once
// Reads a job file and overrides into a Config, and remembers where each value came from.

#include <map>
#include <string>
#include <vector>

#include "lib/config/config.h"
#include "lib/core/files.h"

namespace dstrain {

// Where a value came from.
struct Origin {
  enum class Kind { defaulted, config_json, file, overridden, derived } kind = Kind::defaulted;
  std::string text;  // "job.yaml:14:3", "override 'optimizer.lr=1'", "path/config.json", "default", "derived"
  int line = 0;      // file only
  int column = 0;
};

struct Loaded {
  Config config;
  std::string path;                       // of the job file, as the user gave it
  std::map<std::string, Origin> origins;  // of what was given, say "optimizer.lr"

  const Origin& origin(const std::string& key) const;  // the default's, when `key` was not given
};

// Reads `path` through `files`, then the overrides, each "section.key=value" with the value written as in YAML; the
// later wins. model.from is read first, so that both override it. Throws one Error{usage} with a line for each mistake
//   job.yaml:14:3: optimizer.wieght_decay: unknown key; did you mean 'weight_decay'?
// sorted by place, those of overrides last. Values are checked one by one here; resolve() checks them together.
Loaded load_config(const Files& files, const std::string& path, const std::vector<std::string>& overrides);

// The same from text; `path` is only named.
Loaded parse_config(const Files& files, const std::string& path, const std::string& text,
                    const std::vector<std::string>& overrides);

}  // namespace dstrain
