#pragma once
// A directory for one test, removed with it.

#include <unistd.h>

#include <filesystem>
#include <string>

#include "lib/core/errors.h"

namespace dstrain {

class Temporary {
 public:
  Temporary() {
    static int count = 0;
    path_ = (std::filesystem::temp_directory_path() / format("dstrain-data-{}-{}", getpid(), count++)).string();
    std::filesystem::create_directories(path_);
  }
  ~Temporary() { std::filesystem::remove_all(path_); }
  Temporary(const Temporary&) = delete;
  Temporary& operator=(const Temporary&) = delete;
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

}  // namespace dstrain
